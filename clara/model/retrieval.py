"""The retrieval methods of a model: compress documents, encode questions, and rank."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, QUERY_REASONER
from clara.backbone.packed_forward import positions_of
from clara.config import Overflow
from clara.errors.checks import as_integer
from clara.memory.documents import CompressedDocuments
from clara.memory.padded import PaddedMemory
from clara.memory.searching import SearchableIndex, is_searchable
from clara.memory.space import check_shape
from clara.model.answers import Found, Ranking, found_among, found_in_index, padded_ranking
from clara.model.encoding import (
    check_positions,
    encode_passages,
    encode_states,
    inputs_of,
)
from clara.model.forward import ClaraCore
from clara.model.ranking import Candidates, Documents, check_questions, check_top_k
from clara.model.reranking import check_rerank, reranked
from clara.terminal.progress import document_progress
from clara.text.passages import (
    DocumentLike,
    Passage,
    as_documents,
    prepare_passages,
    prepare_questions,
)

if TYPE_CHECKING:
    from clara.corpus import Reading
    from clara.sync import Built, Migrated


class Retriever(ClaraCore):
    """The methods of a model that compress documents, encode questions and rank."""

    def passages(
        self, documents: Iterable[DocumentLike], overflow: Overflow | None = None
    ) -> list[Passage]:
        """The passages that `compress` would read, in order: whole documents, chunks or beginnings.

        Args and errors are those of `compress`.
        """
        return prepare_passages(
            self.tokenizer,
            as_documents(documents),
            limit=self.config.document_length,
            overflow=self.config.replace(overflow=overflow or self.config.overflow).overflow,
            token_for_eos=self.config.memory_form == "learned",
        )

    def check_fits(self, passages: Sequence[Passage], compression_rate: int | None = None) -> None:
        """Refuse passages that do not fit the backbone's positions with their memory tokens.

        Args:
            passages: of documents, see `passages`.
            compression_rate: as in `compress`, whether the model was trained for it or not.

        Raises:
            ValueError: names the document.
        """
        rate = compression_rate or self.config.compression_rate
        spans = self.config.memory_form == "spans"
        check_positions(self, passages, inputs_of(self, passages, rate if spans else None))

    def always_fits(self, compression_rate: int | None = None) -> bool:
        """Whether documents up to the limit fit the backbone's positions at a rate, all of them.

        In memory form "learned" they do: the model could not be made otherwise.
        """
        positions = positions_of(self.backbone)
        if self.config.memory_form == "learned" or positions is None:
            return True
        slots = self.config.most_memory_tokens(compression_rate)
        return self.config.document_length + slots + 3 <= positions

    def compress(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_tokens: int | None = None,
        overflow: Overflow | None = None,
        compression_rate: int | None = None,
        any_rate: bool = False,
        show_progress_bar: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> CompressedDocuments:
        """Turn documents into memory tokens.

        Args:
            documents: texts, `Document`s, or mappings with "contents", "id", "title"; see
                `as_documents`. Only the contents are read; markup that looks like control
                tokens is text.
            batch_tokens: batch size in tokens of one forward pass, memory slots included. Default:
                1,024 on a CPU, 16,384 on a GPU.
            overflow: what happens to documents over the limit; default from the configuration.
            compression_rate: tokens per memory token, one of `ClaraConfig.rates`; default from the
                configuration. For memory form "spans"; in "learned" the model has one rate.
            any_rate: take a rate that the model was not trained for, with a warning.
            on_progress: called with the number of rows finished since the last call.

        Returns:
            One row per document, or per chunk of it (`CompressedDocuments.ids`), in order.

        Raises:
            TypeError, ValueError: a document has another type, no usable text, id or title, or
                the id of an earlier document; the message names its position.
            ValueError: a document is empty, too long with overflow="error", or does not fit the
                backbone's positions; the message names its id. Or the model is not trained for
                `compression_rate`.
        """
        rate = self.rate(compression_rate, any_rate=any_rate)
        passages = self.passages(documents, overflow)
        with document_progress("compress", len(passages), visible=show_progress_bar) as bar:

            def advance(rows: int) -> None:
                bar.advance(rows)
                if on_progress is not None:
                    on_progress(rows)

            memory = encode_passages(self, passages, COMPRESSOR, batch_tokens, advance, rate=rate)
        return CompressedDocuments(
            memory=memory.rows,
            counts=memory.counts,
            ids=[p.id for p in passages],
            document_ids=[p.document_id for p in passages],
            token_counts=[len(p.tokens) for p in passages],
            texts=[p.text for p in passages],
            titles=[p.title for p in passages],
            fingerprint=self.fingerprint,
        )

    def build_index(
        self,
        path: str | os.PathLike[str],
        sources: Sequence[str] | Reading,
        *,
        prune: bool = False,
        confirm: Callable[[int, int], bool] | None = None,
        overflow: Overflow | None = None,
        compression_rate: int | None = None,
        any_rate: bool = False,
        storage: str | None = None,
        batch_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> Built:
        """Bring an index in step with files, folders and tables, or make one of them.

        What the index holds already, by the digest of each document, is left alone. So a build
        that was killed goes on where it was, and a second one compresses nothing.

        Args:
            path: the folder of the index, which is made if there is none.
            sources: files, folders and patterns, see `clara.corpus.list_sources`; or a `Reading`
                of them with other fields, limits and ways with failures.
            prune: delete documents of these sources that are gone from them. Nothing is deleted
                after a failure.
            confirm: asked before more than a tenth of the sources' documents is deleted, with how
                many, and of how many. Default: no more than a tenth is deleted.
            overflow, compression_rate, any_rate, batch_tokens: as in `compress`. An index that is
                there has its own, which these must not contradict.
            storage: see `MemoryIndex.create`.

        Raises:
            BuildError: at the end, if something failed that the reading does not skip. All else
                is stored.
            DataError: the sources cannot be listed, overlap, or do not fit the index's columns.
            ValueError: the index is of another model, or was begun with other settings.
            MemoryIndexError: the index cannot be opened or written.

        Example:
            >>> built = model.build_index("index", ["handbook"], prune=True)  # doctest: +SKIP
            >>> built.added, built.replaced, built.unchanged  # doctest: +SKIP
            (9, 0, 0)
        """
        from clara.model.building import prepare_build

        build = prepare_build(
            self,
            path,
            sources,
            prune=prune,
            confirm=confirm,
            overflow=overflow,
            compression_rate=compression_rate,
            any_rate=any_rate,
            storage=storage,
            batch_tokens=batch_tokens,
        )
        with document_progress("build", build.total, visible=show_progress_bar) as bar:
            return build.run(bar.advance)

    def migrate_index(
        self,
        path: str | os.PathLike[str],
        *,
        overflow: Overflow | None = None,
        compression_rate: int | None = None,
        any_rate: bool = False,
        storage: str | None = None,
        batch_tokens: int | None = None,
        show_progress_bar: bool = False,
    ) -> Migrated:
        """Compress all documents of an index again by this model, from the texts that it holds.

        Until all are compressed the index stays as it is: others search and change it, and what
        they change is taken up. Then one commit switches to this model. A migration that was
        killed goes on where it was. Versions of the earlier model can be opened and restored until
        they are cleaned up.

        Args:
            path: the folder of the index.
            overflow: what happens to documents over this model's limit. Default: what the index
                was begun with.
            compression_rate, any_rate, batch_tokens: as in `compress`.
            storage: see `MemoryIndex.create`. Default: as the index stores memory now.

        Raises:
            DataError: a document cannot be compressed by this model; names it.
            ValueError: an argument is not as stated.
            MemoryIndexError: a document is damaged, or the index cannot be opened or written, or
                another process is migrating it.

        Example:
            >>> done = model.migrate_index("index", storage="int8")  # doctest: +SKIP
            >>> done.built.added, done.version  # doctest: +SKIP
            (9, 4)
        """
        from clara.model.building import prepare_migration

        migration = prepare_migration(
            self,
            path,
            overflow=overflow,
            compression_rate=compression_rate,
            any_rate=any_rate,
            storage=storage,
            batch_tokens=batch_tokens,
        )
        with document_progress("migrate", migration.total, visible=show_progress_bar) as bar:
            return migration.run(bar.advance)

    def encode_queries(
        self, questions: Sequence[str], *, batch_tokens: int | None = None
    ) -> Tensor:
        """Encode questions into the memory space of the documents.

        Returns:
            `[B, m, H]`. Where documents are ranked by their mean, as in memory form "spans", the
            mean of each question's memory, `[B, 1, H]` in float32.

        Raises:
            ValueError: a question is empty, or longer than the document limit.
        """
        memory = self._question_memory(questions, batch_tokens)
        return memory.queries(self.config.ranking_rule)

    def _question_memory(
        self, questions: Sequence[str], batch_tokens: int | None = None
    ) -> PaddedMemory:
        passages = self._question_passages(questions)
        rate = self._question_rate
        return encode_passages(self, passages, QUERY_REASONER, batch_tokens, rate=rate)

    def _question_states(self, questions: Sequence[str]) -> list[Tensor]:
        """Final states `[m_i, H]` at the memory slots of each question."""
        passages = self._question_passages(questions)
        return encode_states(self, passages, QUERY_REASONER, rate=self._question_rate)

    def _question_passages(self, questions: Sequence[str]) -> list[Passage]:
        return prepare_questions(
            self.tokenizer,
            questions,
            limit=self.config.document_length,
            overflow=self.config.overflow,
            token_for_eos=self.config.memory_form == "learned",
        )

    @property
    def _question_rate(self) -> int | None:
        return self.config.question_rate if self.config.memory_form == "spans" else None

    def rate(self, given: int | None = None, *, any_rate: bool = False) -> int | None:
        """The compression rate to use in memory form "spans"; None in "learned".

        Args:
            given: one of `ClaraConfig.rates`; default from the configuration.
            any_rate: take a rate that the model was not trained for, with a warning.

        Raises:
            TypeError: `given` is no integer.
            ValueError: the model is not trained for it, or has another one in "learned".
        """
        config = self.config
        wanted = config.compression_rate
        if given is not None:
            wanted = as_integer(given, "compression_rate", least=1)
        if config.memory_form == "learned":
            if wanted != config.compression_rate:
                raise ValueError(
                    f"compression_rate must be {config.compression_rate}, the only one of a model "
                    f'in memory form "learned", got {wanted}'
                )
            return None
        if wanted not in config.rates and any_rate:
            known = ", ".join(map(str, config.rates))
            message = f"the model is not trained for compression rate {wanted}, only for {known}"
            warnings.warn(message, stacklevel=3)
        else:
            config.require_trained_rate(wanted)
        return wanted

    def rank(
        self,
        questions: Sequence[str] | Tensor,
        documents: Documents,
        top_k: int | None = None,
    ) -> Ranking:
        """Rank each question's candidates by cosine similarity.

        A `top_k` above the number of candidates selects all.

        Args:
            questions: texts, or their `encode_queries`.
            documents: the same candidates for all questions: `CompressedDocuments`, memory
                `[N, m, H]` or raw documents. Or candidates per question: memory `[B, N, m, H]`, or
                a list with one of these for each question.
            top_k: default from the configuration.
        """
        queries = questions if isinstance(questions, Tensor) else self.encode_queries(questions)
        self._check_queries(queries)
        candidates = self._candidates(documents, len(queries))
        return padded_ranking(candidates.rank(queries, self._top_k(top_k)))

    def find(
        self, queries: Tensor, documents: Documents | SearchableIndex, top_k: int | None = None
    ) -> list[Found]:
        """Find the best documents for each question, which `answer` then reads.

        Args:
            queries: `encode_queries` of the questions.
            documents: as in `rank`, or an index with a method `search(queries, k)`.
            top_k: default from the configuration.

        Raises:
            ValueError: there are no documents, or another model compressed them.
        """
        k = self._top_k(top_k)
        self._check_queries(queries)
        if not is_searchable(documents):
            return found_among(self._candidates(documents, len(queries)), queries, k)
        self.memory_space.require(
            documents, "the index was written", "compress its documents again with this model"
        )
        return found_in_index(documents, queries, k, self.read_memory)

    def retrieve(
        self,
        questions: Sequence[str],
        documents: Documents | SearchableIndex,
        *,
        top_k: int | None = None,
        rerank: int | None = None,
        lap: Callable[[str], None] = lambda step: None,
    ) -> list[Found]:
        """Encode questions and find the best documents for each, which `answer` then reads.

        Args:
            documents: as in `rank`, or an index with a method `search(queries, k)`.
            top_k: default from the configuration.
            rerank: find so many documents, at least `top_k`, and keep the best `top_k` of them as
                the method `rerank` orders them. None: keep those that `find` ranks first.
            lap: called with "query" and "rank" once these steps are done.

        Raises:
            TypeError, ValueError: `rerank` is no integer, or below `top_k`. Also the errors of
                `encode_queries` and `find`.
        """
        k = self._top_k(top_k)
        most = k if rerank is None else check_rerank(rerank, k)
        asked = self._question_memory(questions)
        lap("query")
        found = self.find(asked.queries(self.config.ranking_rule), documents, most)
        if rerank is not None:
            found = reranked(asked, found, k)
        lap("rank")
        return found

    def rerank(
        self, questions: Sequence[str], found: Sequence[Found], top_k: int | None = None
    ) -> list[Found]:
        """Order the documents found for each question again, by `max_similarity` of their memory.

        This compares every vector of a question with every vector of a document. So it sees a
        name or number that the mean of a document's vectors hides, but it reads all of their
        memory. Find more documents than you need, and keep the best of them.

        Args:
            found: what `find` returned for these questions.
            top_k: number of documents to keep; default from the configuration.

        Returns:
            Documents best first, with the similarity, in [-1, 1], as their score. A question
            without documents stays without.

        Raises:
            TypeError, ValueError: `questions` is a single string, or documents are given for
                another number of questions.
        """
        check_questions(questions, len(found))
        return reranked(self._question_memory(questions), found, self._top_k(top_k))

    def _candidates(self, documents: Documents, questions: int) -> Candidates:
        return Candidates.gather(
            documents,
            questions,
            read=self.read_memory,
            compress=self.compress,
            device=self.device,
            rule=self.config.ranking_rule,
        )

    def _check_queries(self, queries: Tensor) -> None:
        if self.config.ranking_rule == "mean":
            check_shape(queries, 1, self.hidden_size, "questions")

    def _top_k(self, given: int | None) -> int:
        return check_top_k(self.config.top_k if given is None else given)
