"""Give the query reasoner of a model in memory form "spans" a start: a map fitted to its ranking.

    python recipes/query_start.py MODEL TARGET [--examples FILE]

A question is compared with documents by the mean of its memory, `W h̄ + ē`: ē is the mean embedding
of its tokens, h̄ the mean final state of their slots. So the best W for a frozen adapter needs one
forward of each question, and then seconds: W is trained by InfoNCE on h̄ and ē, which are kept, and
on vectors of documents, which need none, see mean_memory.py.

The adapter itself is untrained in what is written: the compressor's has learnt to read passages.
A stage that goes on from there needs `query_reasoner: saved`. Everything else stays as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from least_squares import solved, to_one
from mean_memory import MEASURED, RATES, added_on_average, mean_of_spans
from renamed_subjects import subject
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clara.backbone.adapters import QUERY_REASONER
from clara.data.examples import RankingExample, contrastive_example, open_examples
from clara.errors import ClaraError
from clara.files.writing import new_folder
from clara.model.clara import Clara
from clara.model.encoding import encode_states
from clara.terminal.printing import quiet_libraries, say
from clara.text.passages import prepare_questions

EXAMPLES = Path("data") / "factbook" / "ranking.renamed.train.jsonl"
COUNT = 12_000
"""Questions that the map is fitted to, from the beginning of the file: one forward of each."""
HELD_OUT = 0.1
"""Share of the subjects, such as countries, whose questions say which step is the best."""
TEMPERATURE = 0.005
STEPS, BATCH, LEARNING_RATE = 1000, 128, 1.6e-3
EVERY = 25  # steps between two looks at what is held out
RIDGE = 10.0
LENGTH = 30.0
"""Mean norm of `W h̄` at first, so that ē, of norm 1, says little beside it."""


class QueryStartError(ClaraError, ValueError):
    """No map can be fitted to what was given."""


class Recall(NamedTuple):
    """Share of questions whose document is ranked first, and among the first five."""

    at_1: float
    at_5: float


@dataclass(frozen=True)
class Features:
    """What a map is fitted to.

    Attributes:
        states: `[N, H]`, h̄ of questions, divided by the connector's scale.
        means: `[N, H]`, ē.
        vectors: for each rate `[D, H]` of documents, with norm 1.
        candidates: `[N, C]` rows of `vectors`, the one that answers first; padded with -1.
    """

    states: Tensor
    means: Tensor
    vectors: list[Tensor]
    candidates: Tensor

    def scores(self, queries: Tensor, rows: Tensor, rate: int) -> Tensor:
        """Cosines `[B, C]` of the queries of some rows; -1 in place of padding."""
        candidates = self.candidates[rows]
        found = self.vectors[rate][candidates.clamp_min(0)] @ normalize(queries, dim=1)[:, :, None]
        return found.squeeze(2).masked_fill(candidates < 0, -1.0)

    def recall(self, queries: Tensor, rows: Tensor) -> Recall:
        """Of the queries of some rows, over all rates."""
        scores = torch.cat([self.scores(queries, rows, rate) for rate in range(len(self.vectors))])
        ahead = (scores[:, 1:] >= scores[:, :1]).sum(1)
        return Recall(*(float((ahead < k).float().mean()) for k in (1, 5)))

    def loss(self, queries: Tensor, rows: Tensor, rate: int) -> Tensor:
        """InfoNCE against own candidates and the documents that answer the others of the batch."""
        own = self.scores(queries, rows, rate)
        answers = self.candidates[rows, 0]
        others = normalize(queries, dim=1) @ self.vectors[rate][answers].T
        others = others.masked_fill(answers[:, None] == answers, -1.0)
        return cross_entropy(
            torch.cat([own, others], 1) / TEMPERATURE, torch.zeros(len(rows), dtype=torch.long)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fit a start of the query reasoner.")
    parser.add_argument("model", type=Path, help="folder of a model in memory form spans")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--examples", type=Path, default=EXAMPLES, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=COUNT, help="default: %(default)s")
    given = parser.parse_args(arguments)
    quiet_libraries()
    try:
        print(json.dumps(query_start(given.model, given.target, given.examples, given.questions)))
    except (ClaraError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


def query_start(source: Path, target: Path, file: Path, count: int = COUNT) -> dict[str, float]:
    """Write the model with a query reasoner whose connector is fitted.

    Args:
        file: questions with candidates, as for the end-to-end stage.
        count: of questions to use.

    Returns:
        "questions" and "held_out", their numbers, the "step" that was the best, and recall of the
        held out before and after: "before_at_1", "before_at_5", "at_1", "at_5".

    Raises:
        QueryStartError: `target` exists, the model has another form of memory, or all questions are
            on one subject.
        DataError: see `open_examples`.
    """
    if target.exists():
        raise QueryStartError(f"{target}: exists; name a new folder")
    model = Clara.from_pretrained(source, device="cpu")
    if model.config.memory_form != "spans" or model.config.connector_rank is not None:
        raise QueryStartError(f"{source}: needs memory_form spans with connector_rank null")
    examples = open_examples(str(file), "train", contrastive_example)[:count]
    examples = [e for e in examples if e.positives and len(e.documents) > len(e.positives)]
    held = held_out([subject(e.documents[e.positives[0]]) for e in examples])
    if not held.any() or held.all():
        raise QueryStartError(f"{file}: needs questions on some subjects, at least two")
    untrained(model)
    features = features_of(model, examples)
    map_, step, before, after = fitted(features, held)
    model.connectors.of(QUERY_REASONER).up.data.copy_(map_)
    with new_folder(target) as unfinished:
        model.save_pretrained(unfinished)
    return {
        "questions": len(examples),
        "held_out": int(held.sum()),
        "step": step,
        **{f"before_{name}": value for name, value in before._asdict().items()},
        **after._asdict(),
    }


def held_out(subjects: Sequence[str]) -> Tensor:
    """Which questions are on the subjects that are held out: bool `[N]`."""
    different = sorted(set(subjects))
    random.Random(0).shuffle(different)
    chosen = set(different[: max(1, round(HELD_OUT * len(different)))])
    return torch.tensor([each in chosen for each in subjects], dtype=torch.bool)


@torch.no_grad()
def untrained(model: Clara) -> None:
    """Let the query reasoner's adapter change nothing."""
    for name, value in model.adapters.parameters(QUERY_REASONER).items():
        if ".lora_B." in name:
            value.zero_()


@torch.no_grad()
def features_of(model: Clara, examples: Sequence[RankingExample]) -> Features:
    """One forward of each question; of documents only `MEASURED` are compressed."""
    config = model.config
    passages = prepare_questions(
        model.tokenizer,
        [example.question for example in examples],
        limit=config.document_length,
        overflow="truncate",
        token_for_eos=False,
    )
    rate, scale = config.question_rate, model.connectors.of(QUERY_REASONER).scale
    states = encode_states(model, passages, QUERY_REASONER, rate=rate)
    texts = list(dict.fromkeys(text for example in examples for text in example.documents))
    documents = model.passages(texts, "truncate")
    measured = random.Random(0).sample(documents, min(MEASURED, len(documents)))
    place = {text: row for row, text in enumerate(texts)}
    rows = [
        torch.tensor([place[text] for text in [e.documents[e.positives[0]], *others(e)]])
        for e in examples
    ]
    return Features(
        torch.stack([each.float().mean(0) for each in states]) / scale,
        mean_of_spans(model, passages, rate),
        [
            normalize(
                mean_of_spans(model, documents, rate) + added_on_average(model, measured, rate),
                dim=1,
            )
            for rate in RATES
        ],
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1),
    )


def others(example: RankingExample) -> list[str]:
    """Candidates that do not answer."""
    positives = set(example.positives)
    return [text for at, text in enumerate(example.documents) if at not in positives]


def fitted(features: Features, held: Tensor) -> tuple[Tensor, int, Recall, Recall]:
    """The map `[H, H]` of the best step, that step, and recall of what is held out.

    What is trained is `W = L P (S + D) (I - μ vᵀ) + b vᵀ`. P makes documents vary alike in all
    directions, which their own vectors do not. S maps states to the embeddings of their tokens, so
    that the fit begins at the question's words. v maps states to about 1, so b is a constant, and
    μ, their mean, is left out of the rest. D and b begin at zero; L is a number.

    Returns:
        The map, the step, recall before any step, and at that step.
    """
    train = (~held).nonzero().squeeze(1)
    states, means = features.states, features.means
    whiten = inverse_root(torch.cat(features.vectors))
    one = to_one(states[train], RIDGE)
    mean = states[train].mean(0)
    centre = torch.eye(len(mean)) - torch.outer(mean, one)
    embeddings = means[train] - means[train].mean(0)
    words = whiten @ solved(states[train] @ centre.T, embeddings, RIDGE).T
    length = LENGTH / float((states @ (whiten @ words @ centre).T).norm(dim=1).mean())
    change = torch.zeros_like(words, requires_grad=True)
    constant = torch.zeros_like(mean, requires_grad=True)

    def current() -> Tensor:
        return length * (whiten @ (words + change) @ centre + torch.outer(whiten @ constant, one))

    def look() -> tuple[Tensor, Recall]:
        with torch.no_grad():
            map_ = current()
            return map_, features.recall(states[held] @ map_.T + means[held], held.nonzero()[:, 0])

    optimizer = torch.optim.AdamW([change, constant], lr=LEARNING_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    map_, before = look()
    best, at = before, 0
    for step in range(1, STEPS + 1):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2 * (STEPS - step + 1) / STEPS)
        rows = train[torch.randint(len(train), (BATCH,), generator=generator)]
        queries = states[rows] @ current().T + means[rows]
        loss = features.loss(queries, rows, step % len(features.vectors))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            found, recall = look()
            if recall > best:
                map_, best, at = found, recall, step
    return map_, at, before, best


def inverse_root(vectors: Tensor) -> Tensor:
    """`[H, H]`, the inverse root of the root of vectors' covariance."""
    values, directions = torch.linalg.eigh(torch.cov(vectors.T))
    return directions @ torch.diag((values + 1e-3 * values.mean()).pow(-0.25)) @ directions.T


if __name__ == "__main__":
    sys.exit(main())
