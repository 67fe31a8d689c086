"""Calls of small odd sizes: what compute-sanitizer watches on a GPU."""
