"""Train a reranker inside your own RAG stack, with three operators and plain PyTorch.

The stack has an embedding for every question, and a few vectors ("memory") for every candidate
passage, which a reader consumes. The training data has answers, but does not say which passages
help. So the passages are selected differentiably, and the loss of the answer trains the ranking:

    scores   = cosine_scores(adapter(question), passages)   ranks the candidates of each question
    selected = select_topk(scores, passages, k)             chooses k, with gradients to the scores
    weights  = sparsemax(...)                               a reader that ignores poor passages

Run it: `python examples/kernels_in_your_stack.py`. It takes a few seconds on a CPU.

The data is made up. One of 20 candidates is about the question and holds the answer. The question's
embedding lies in another space than the passages; the adapter learns to map one to the other.
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

    The first vector of a passage is its topic. The last one is what it says: the answer, if the
    question is about this passage.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.meanings = self._randn(ANSWERS, WIDTH)
        # This rotation takes a topic into the space of questions. Noise is added to it there.
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
    """Maps a question into the passages' space, ranks passages, and reads the selected ones."""

    meanings: Tensor

    def __init__(self, meanings: Tensor) -> None:
        super().__init__()
        self.adapter = nn.Linear(WIDTH, VECTORS * WIDTH, bias=False)
        self.sharpness = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("meanings", meanings)

    def rank(self, questions: Tensor, passages: Tensor) -> Tensor:
        """Scores `[B, CANDIDATES]`: cosines over all vectors of a passage."""
        return cosine_scores(self.adapter(questions), passages.flatten(2))

    def forward(self, questions: Tensor, passages: Tensor) -> Tensor:
        """Logits of the answers, `[B, ANSWERS]`."""
        scores = self.rank(questions, passages)
        selected, _ = select_topk(scores, passages, CHOSEN, temperature=TEMPERATURE)
        # The reader weighs passages by their match with the question. Sparsemax gives poor ones 0.
        wanted = self.adapter(questions).unflatten(1, (VECTORS, WIDTH))[:, None]  # [B, 1, m, H]
        match = torch.cosine_similarity(selected.flatten(2), wanted.flatten(2), dim=-1)
        weights = sparsemax(match * self.sharpness)  # [B, k]
        read = (weights[:, :, None] * selected[:, :, -1]).sum(1)  # [B, WIDTH]
        return read @ self.meanings.T / WIDTH**0.5


@torch.no_grad()
def evaluate(model: Reranker, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """Recall: how often the right passage is selected. Accuracy: how often the answer is right."""
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
        # The loss sees only the answer, never which passage holds it.
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
