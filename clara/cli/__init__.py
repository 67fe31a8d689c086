"""The `clara` command. Importing this loads neither torch nor transformers."""

from clara.cli.app import main

__all__ = ["main"]
