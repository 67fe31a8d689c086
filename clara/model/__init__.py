"""The model: memory tokens, encoding, ranking, generation and checkpoints."""
