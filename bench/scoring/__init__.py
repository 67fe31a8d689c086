"""What the benchmark of exact search on a CPU is made of."""
