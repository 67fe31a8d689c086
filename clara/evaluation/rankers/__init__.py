"""Ways to order the candidate documents of a question, which an evaluation compares."""

from clara.evaluation.rankers.protocol import Ranked, Ranker

__all__ = ["Ranked", "Ranker"]
