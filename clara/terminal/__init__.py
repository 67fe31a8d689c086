"""Progress bars and printing."""
