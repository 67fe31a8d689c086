"""The retrieval methods of a model: compress documents, encode questions, and rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from clara.backbone.adapters import COMPRESSOR, QUERY_REASONER
from clara.config import Overflow
from clara.memory.documents import CompressedDocuments
from clara.memory.searching import SearchableIndex, is_searchable
from clara.model.answers import Found, Ranking, found_among, found_in_index, padded_ranking
from clara.model.encoding import encode_passages
from clara.model.modules import ClaraCore
from clara.model.ranking import Candidates, Documents, check_top_k
from clara.terminal.progress import document_progress
from clara.text.passages import (
    DocumentLike,
    Passage,
    as_documents,
    prepare_passages,
    prepare_questions,
)


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
        )

    def compress(
        self,
        documents: Iterable[DocumentLike],
        *,
        batch_tokens: int | None = None,
        overflow: Overflow | None = None,
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
            on_progress: called with the number of rows finished since the last call.

        Returns:
            One row per document, or per chunk of it (`CompressedDocuments.ids`), in order.

        Raises:
            TypeError, ValueError: a document has another type, no usable text, id or title, or
                the id of an earlier document; the message names its position.
            ValueError: a document is empty or, with overflow="error", too long; the message names
                its id.
        """
        passages = self.passages(documents, overflow)
        with document_progress("compress", len(passages), visible=show_progress_bar) as bar:

            def advance(rows: int) -> None:
                bar.advance(rows)
                if on_progress is not None:
                    on_progress(rows)

            memory = encode_passages(self, passages, COMPRESSOR, batch_tokens, advance)
        return CompressedDocuments(
            memory=memory,
            ids=[p.id for p in passages],
            document_ids=[p.document_id for p in passages],
            token_counts=[len(p.tokens) for p in passages],
            texts=[p.text for p in passages],
            titles=[p.title for p in passages],
            fingerprint=self.fingerprint,
        )

    def encode_queries(
        self, questions: Sequence[str], *, batch_tokens: int | None = None
    ) -> Tensor:
        """Encode questions into the memory space of the documents: `[B, m, H]`.

        Raises:
            ValueError: a question is empty, or longer than the document limit.
        """
        passages = prepare_questions(
            self.tokenizer,
            questions,
            limit=self.config.document_length,
            overflow=self.config.overflow,
        )
        return encode_passages(self, passages, QUERY_REASONER, batch_tokens)

    def rank(
        self,
        questions: Sequence[str] | Tensor,
        documents: Documents,
        top_k: int | None = None,
    ) -> Ranking:
        """Rank each question's candidates by cosine similarity.

        A `top_k` above the number of candidates selects all.

        Args:
            questions: texts, or their `encode_queries` `[B, m, H]`.
            documents: the same candidates for all questions: `CompressedDocuments`, memory
                `[N, m, H]` or raw documents. Or candidates per question: memory `[B, N, m, H]`, or
                a list with one of these for each question.
            top_k: default from the configuration.
        """
        queries = questions if isinstance(questions, Tensor) else self.encode_queries(questions)
        candidates = self._candidates(documents, len(queries))
        return padded_ranking(candidates.rank(queries, self._top_k(top_k)))

    def find(
        self, queries: Tensor, documents: Documents | SearchableIndex, top_k: int | None = None
    ) -> list[Found]:
        """Find the best documents for each question, which `answer` then reads.

        Args:
            queries: `encode_queries` of the questions, `[B, m, H]`.
            documents: as in `rank`, or an index with a method `search(queries, k)`.
            top_k: default from the configuration.

        Raises:
            ValueError: there are no documents, or another model compressed them.
        """
        k = self._top_k(top_k)
        if not is_searchable(documents):
            return found_among(self._candidates(documents, len(queries)), queries, k)
        self.memory_space.require(
            documents, "the index was written", "compress its documents again with this model"
        )
        return found_in_index(documents, queries, k, self.read_memory)

    def _candidates(self, documents: Documents, questions: int) -> Candidates:
        return Candidates.gather(
            documents,
            questions,
            read=self.read_memory,
            compress=self.compress,
            device=self.device,
        )

    def _top_k(self, given: int | None) -> int:
        return check_top_k(self.config.top_k if given is None else given)
