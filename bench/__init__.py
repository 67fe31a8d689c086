"""Benchmarks of clara and clara_kernels.

`pytest bench` runs the suites; other programs are run by `python -m bench.NAME` from the folder
above this one.
"""
