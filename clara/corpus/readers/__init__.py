"""Readers of tables and plain text, which need no process of their own."""
