"""Answers and compression on a GPU, end to end: `python -m bench.end_to_end`."""
