"""Training: the stages, their losses, and the runs that carry them out."""
