"""Compressed documents, and what belongs together."""
