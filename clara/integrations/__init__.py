"""What lets engines and libraries that people already run work with a model."""
