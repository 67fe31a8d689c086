"""Statistics of a synthesis run: counts, tokens and cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Statistics:
    """Counts of a run; replies from the journal count as if they had been given now.

    Attributes:
        documents: read.
        finished: whose pairs and paraphrase were accepted.
        left_out: documents by reason.
        pairs: accepted, by kind.
        rejected: pairs and questions by reason.
        rounds: documents by rounds of coverage that found something missing.
        attempts: documents by attempts at a paraphrase.
        held: replies that the journal held.
        messages: what was said of the first request without a reply, by reason.
        calls: replies used, and of those `reused` from the journal and `repaired` by asking again.
        retries: requests sent again.
        prompt_tokens, completion_tokens: of all replies used, and paid for in this run.
    """

    documents: int = 0
    finished: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    held: int = 0
    calls: int = 0
    reused: int = 0
    repaired: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    paid_prompt_tokens: int = 0
    paid_completion_tokens: int = 0

    def report(self, price_input: float | None, price_output: float | None) -> dict[str, Any]:
        """The statistics as a JSON object.

        Args:
            price_input, price_output: of a million tokens, for the cost of what this run paid for
                and of all replies together.
        """
        finished = max(self.finished, 1)
        report: dict[str, Any] = {
            "documents": self.documents,
            "finished": self.finished,
            "left_out": dict(sorted(self.left_out.items())),
            "pairs": dict(sorted(self.pairs.items())),
            "pairs_per_document": {
                kind: round(count / finished, 3) for kind, count in sorted(self.pairs.items())
            },
            "rejected": dict(sorted(self.rejected.items())),
            "coverage_rounds": _spread(self.rounds),
            "paraphrase_attempts": _spread(self.attempts),
            "failed_requests": dict(sorted(self.messages.items())),
            "calls": self.calls,
            "journal_replies": self.held,
            "reused_replies": self.reused,
            "repaired_replies": self.repaired,
            "retries": self.retries,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "paid_tokens": {
                "prompt": self.paid_prompt_tokens,
                "completion": self.paid_completion_tokens,
            },
        }
        if price_input is not None or price_output is not None:
            read, written = price_input or 0.0, price_output or 0.0
            every = self.prompt_tokens * read + self.completion_tokens * written
            paid = self.paid_prompt_tokens * read + self.paid_completion_tokens * written
            report["cost"] = {"run": paid / 1e6, "all": every / 1e6}
        return report


def _spread(counts: Counter[int]) -> dict[str, Any]:
    """Mean and histogram."""
    total = sum(number * count for number, count in counts.items())
    return {
        "mean": round(total / max(sum(counts.values()), 1), 3),
        "histogram": {str(number): count for number, count in sorted(counts.items())},
    }
