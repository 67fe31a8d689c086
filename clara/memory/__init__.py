"""Compressed documents, and checks that memory comes from the same model."""
