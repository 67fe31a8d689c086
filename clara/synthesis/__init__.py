"""Training data for compression pretraining, asked of a language model (SCP)."""
