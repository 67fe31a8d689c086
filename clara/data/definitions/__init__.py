"""Definitions of words and other prose, from packages of Debian."""

from clara.data.definitions.build import write_definitions
from clara.data.definitions.wordnet import DefinitionsError, Entry, read_wordnet

__all__ = ["DefinitionsError", "Entry", "read_wordnet", "write_definitions"]
