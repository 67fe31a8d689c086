"""Ways to answer a question from documents, which an evaluation compares."""

from clara.evaluation.systems.protocol import Answered, SwappedSystem, System

__all__ = ["Answered", "SwappedSystem", "System"]
