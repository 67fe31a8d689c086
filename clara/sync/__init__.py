"""Keep an index in step with its sources: add what is new, replace what changed, prune."""
