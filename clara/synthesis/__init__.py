"""Generate training data for compression pretraining with a language model (SCP)."""
