"""The backbone: load a causal language model, and everything that changes its layers."""
