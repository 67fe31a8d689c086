"""A small task on which it can be seen whether training learns what it should."""
