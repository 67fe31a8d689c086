"""Comparisons of memory tokens with plain text."""
