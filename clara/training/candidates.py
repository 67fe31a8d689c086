"""Memory of the candidates of a training set: compressed once, read back at every step."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from torch import Tensor

from clara.config import Overflow
from clara.data.examples import RankingExample
from clara.data.records import Document
from clara.index import DuplicateIdError, MemoryIndex
from clara.memory.documents import CompressedDocuments
from clara.model.clara import Clara
from clara.terminal.printing import is_terminal, say
from clara.terminal.progress import document_progress
from clara.training.batches import RankingBatch, candidate_id
from clara.training.collators import RankingCollator
from clara.training.encoder import Encoder

_AT_ONCE = 512
"""Documents compressed and committed together; so many are compressed again after a kill."""

_SECONDS = 30
"""Between two lines about it where standard error is no terminal."""


class CandidateMemory:
    """The candidates in a `MemoryIndex`, under `candidate_id` of their text.

    Args:
        model: whose compressor the memory is of. It must stay as it is.
        path: of the index; made if there is none. One made earlier is used and added to.
        rate: compression rate of the memory in memory form "spans"; default from the configuration.
        overflow: "truncate" or "error" for texts over the document limit.

    Attributes:
        rate: compression rate of the memory.
        unusable: names of texts that have no memory: they are empty, or too long with "error".
        truncated: how many texts were cut by `add`.

    Raises:
        ValueError: the index there holds another compressor's memory, or was made with another
            rate, limit or ranking.
    """

    def __init__(
        self,
        model: Clara,
        path: str | os.PathLike[str],
        *,
        rate: int | None = None,
        overflow: Overflow = "truncate",
    ) -> None:
        self._model = model
        self.rate = rate or model.config.compression_rate
        self._overflow: Overflow = "truncate" if overflow == "chunk" else overflow
        self.unusable: set[str] = set()
        self.truncated = 0
        if os.path.isdir(path) and os.listdir(path):
            self.index = MemoryIndex.open(path)
            model.memory_space.require_addable(self.index, "choose another candidate_index")
            self._check_settings()
        else:
            self.index = MemoryIndex.create(
                path,
                fingerprint=model.fingerprint,
                memory_tokens=model.config.most_memory_tokens(self.rate),
                hidden_size=model.hidden_size,
                dtype=model.dtype,
                settings=model.config.index_settings(self.rate),
            )

    def _check_settings(self) -> None:
        """Refuse an index of another rate, limit or ranking, which the fingerprint allows."""
        config = self._model.config
        unnamed = {"ranking": "flattened"}  # as indexes of this ranking are
        wanted, found = unnamed | config.index_settings(self.rate), unnamed | self.index.settings
        for name in ("compression_rate", "document_length", "ranking"):
            if name in found and found[name] != wanted[name]:
                raise ValueError(
                    f"{self.index.path}: was made with {name} {found[name]}, this run has "
                    f"{wanted[name]}; choose another candidate_index"
                )

    def add(self, texts: Iterable[str], *, show_progress_bar: bool = True) -> int:
        """Compress the texts whose memory is missing; returns how many that were."""
        added, told = 0, time.monotonic()
        spans = self._model.config.memory_form == "spans"
        task = f"compress candidates at rate {self.rate}" if spans else "compress candidates"
        with document_progress(task, None, visible=show_progress_bar) as bar:
            for part in self._missing(texts):
                documents = self._usable(part)
                if documents:
                    self._compress(documents, bar.advance)
                added += len(documents)
                if time.monotonic() - told > _SECONDS and show_progress_bar and not is_terminal():
                    told = time.monotonic()
                    say(f"{task}: {added} so far")
        return added

    def _compress(self, documents: list[Document], on_progress: Callable[[int], None]) -> None:
        made = self._model.compress(
            documents,
            overflow=self._overflow,
            compression_rate=self.rate,
            on_progress=on_progress,
        )
        self._store(made)
        read = zip(documents, made.texts, strict=True)
        self.truncated += sum(document.text != text for document, text in read)

    def _store(self, made: CompressedDocuments) -> None:
        """Add what no other run adds to the same index at the same time."""
        while len(made):
            try:
                self.index.add(made)
                return
            except DuplicateIdError:
                there = self.index.contains(made.ids)
                made = made[[row for row, known in enumerate(there) if not known]]

    def _usable(self, documents: list[Document]) -> list[Document]:
        """The documents that can be compressed; the others are noted."""
        usable = []
        for document in documents:
            try:
                passages = self._model.passages([document], self._overflow)
                self._model.check_fits(passages, self.rate)
            except ValueError:
                self.unusable.add(document.id)
            else:
                usable.append(document)
        return usable

    def _missing(self, texts: Iterable[str]) -> Iterator[list[Document]]:
        """Documents that are not in the index, some at a time: texts may be too many to keep."""
        seen: set[str] = set()
        different = ((name, text) for text in texts if (name := candidate_id(text)) not in seen)
        while part := dict(islice(different, _AT_ONCE)):
            seen.update(part)
            there = self.index.contains(list(part))
            missing = [
                Document(id=name, text=text)
                for (name, text), known in zip(part.items(), there, strict=True)
                if not known
            ]
            if missing:
                yield missing

    def read(self, names: Sequence[str]) -> CompressedDocuments:
        """Candidates by name, on the CPU; a name may come repeatedly."""
        different = list(dict.fromkeys(names))
        place = {name: row for row, name in enumerate(different)}
        return self.index.get(different)[[place[name] for name in names]]

    def any_name(self) -> str:
        """The name of a candidate, whichever."""
        return self.index.ids()[0]

    def search(self, queries: Tensor, k: int) -> list[list[str]]:
        """Names of the `k` candidates that lie nearest to each query."""
        return [[hit.id for hit in hits] for hits in self.index.search(queries, k)]


def index_folders(root: str | os.PathLike[str], rates: Sequence[int]) -> dict[int, Path]:
    """Where the index of candidates of each rate is, or is to be made.

    The index of a single rate is `root` itself. Several rates have the indexes `root/rate-4`,
    `root/rate-16` and so on, which a run with one of these rates finds too.

    Raises:
        ValueError: several rates are wanted, and `root` is an index.
    """
    place = Path(root).expanduser()
    # An index that is being made has a name with a dot until it is whole.
    names = [n for n in os.listdir(place) if n[0] != "."] if place.is_dir() else []
    divided = any(re.fullmatch(r"rate-\d+", name) for name in names)
    if len(rates) == 1 and not divided:
        return {rates[0]: place}
    if names and not divided:
        raise ValueError(
            f"{place}: holds no indexes of candidates named rate-N, as candidate_rates "
            f"{', '.join(map(str, rates))} need them; choose another candidate_index"
        )
    return {rate: place / f"rate-{rate}" for rate in rates}


def ranking_stand_in(
    encoder: Encoder, candidates: Mapping[int, CandidateMemory], top_k: int | None
) -> RankingBatch:
    """A question with one candidate, see `Objective.stand_in`."""
    example = RankingExample("Who?", ("Ada.",), (0,), "Ada")
    rate, memory = next(iter(candidates.items()))
    batch = RankingCollator(encoder, top_k, rate=rate)([example])
    assert isinstance(batch, RankingBatch)
    return batch.with_candidates([[memory.any_name()]])
