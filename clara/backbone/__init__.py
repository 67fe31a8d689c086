"""The backbone: loading a causal language model, and all that changes its layers."""
