"""Train a reranker inside a RAG stack of your own: three operators, plain PyTorch, nothing else.

A stack has an embedding for every question and, for every candidate passage, a few vectors that a
reader consumes ("memory"). Which passages help is known only through the answer. So the passages
are chosen differentiably, and the loss of the answer trains the vectors that rank them:

    scores   = cosine_scores(adapter(question), passages)   ranks the candidates of each question
    selected = select_topk(scores, passages, k)             chooses k, with gradients to the scores
    weights  = sparsemax(...)                               a reader that ignores poor passages

Run it: `python examples/kernels_in_your_stack.py`. It takes some seconds on a CPU. The passages are
made up: of 20 candidates one is about the question and holds the answer, but the question's
embedding lies in another space than the passages', which the adapter has to learn.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clara_kernels import cosine_scores, select_topk, sparsemax

CANDIDATES, VECTORS, WIDTH, ANSWERS, CHOSEN = 20, 2, 32, 16, 3
TEMPERATURE = 0.05


class Corpus:
    """Made-up questions: `[B, WIDTH]`, passages `[B, CANDIDATES, VECTORS, WIDTH]` and answers.

    A passage's first vector is what it is about, its last one says something: the answer, if the
    question is about this passage.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.meanings = self._randn(ANSWERS, WIDTH)
        # Questions are in another space: turned by this, and noisy.
        self._turn = torch.linalg.qr(self._randn(WIDTH, WIDTH)).Q

    def questions(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Questions, passages, answers, and where the passage with the answer is."""
        topics = self._randn(count, CANDIDATES, WIDTH)
        said = torch.randint(ANSWERS, (count, CANDIDATES), generator=self._generator)
        passages = torch.stack([topics, self.meanings[said]], dim=2)
        gold = torch.randint(CANDIDATES, (count,), generator=self._generator)
        rows = torch.arange(count)
        questions = topics[rows, gold] @ self._turn + self._randn(count, WIDTH)
        return questions, passages, said[rows, gold], gold

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


class Reranker(nn.Module):
    """Question to a vector in the passages' space, and a reader of the chosen passages."""

    meanings: Tensor

    def __init__(self, meanings: Tensor) -> None:
        super().__init__()
        self.adapter = nn.Linear(WIDTH, VECTORS * WIDTH, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("meanings", meanings)

    def rank(self, questions: Tensor, passages: Tensor) -> Tensor:
        """Scores `[B, CANDIDATES]`, cosines over all vectors of a passage."""
        return cosine_scores(self.adapter(questions), passages.flatten(2))

    def forward(self, questions: Tensor, passages: Tensor) -> Tensor:
        """Logits of the answers, `[B, ANSWERS]`."""
        scores = self.rank(questions, passages)
        selected, _ = select_topk(scores, passages, CHOSEN, temperature=TEMPERATURE)
        # The reader trusts the passages that look like the question, some of them not at all.
        wanted = self.adapter(questions).unflatten(1, (VECTORS, WIDTH))[:, None]  # [B, 1, m, H]
        match = torch.cosine_similarity(selected.flatten(2), wanted.flatten(2), dim=-1)
        weights = sparsemax(match * self.sharpness)  # [B, k]
        read = (weights[:, :, None] * selected[:, :, -1]).sum(1)  # [B, WIDTH]
        return read @ self.meanings.T / WIDTH**0.5


@torch.no_grad()
def evaluate(model: Reranker, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """How often the right passage is among the chosen, and how often the answer is right."""
    questions, passages, answers, gold = batch
    best = model.rank(questions, passages).topk(CHOSEN).indices
    recall = (best == gold[:, None]).any(1).float().mean().item()
    right = (model(questions, passages).argmax(1) == answers).float().mean().item()
    return recall, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    corpus = Corpus(options.seed)
    held_out = corpus.questions(1000)
    model = Reranker(corpus.meanings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)

    def report(when: str) -> None:
        recall, right = evaluate(model, held_out)
        print(f"{when}: recall@{CHOSEN} {recall:.3f}, answers right {right:.3f}", flush=True)

    report("before training")
    for step in range(1, options.steps + 1):
        # Only the answer is given, never which passage it came from.
        questions, passages, answers, _ = corpus.questions(options.batch)
        loss = cross_entropy(model(questions, passages), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 and step < options.steps:
            report(f"after {step} steps")
    report("after training")


if __name__ == "__main__":
    main()
