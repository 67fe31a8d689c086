"""Weights of other projects, converted."""
