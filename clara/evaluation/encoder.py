"""A model as an encoder of texts: one vector each, in the manner of sentence-transformers.

Harnesses for retrieval (MTEB, BEIR) take any object with these methods. So CLaRa's ranking can be
measured by them, beside that of ordinary encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clara.config import Overflow
from clara.data.records import Document
from clara.errors.checks import as_integer
from clara.model.clara import Clara
from clara.terminal.progress import document_progress
from clara.text.tokenizer import check_text

TextLike = str | Mapping[str, Any]
"""A text, or a mapping with "text" and perhaps "title", as corpora of BEIR have it."""

_QUERIES = ("query",)
_DOCUMENTS = ("document", "passage", "corpus")


class ClaraEncoder:
    """Vectors of questions and documents whose cosines are the scores of `Clara.rank`.

    The vector of a text is what the model ranks by. In memory form "learned" it is all memory
    tokens, one after the other, so that it has `m * H` numbers; in "spans" the mean of the memory
    tokens, with `H` numbers. All are float32, and of length 1 unless `normalize_embeddings` is
    False.

    Args:
        model: compresses documents and encodes questions.
        rate: compression rate of documents, one of `ClaraConfig.rates`; default from the model's
            configuration.
        overflow: of a document over the model's limit "truncate" reads the beginning, as encoders
            do, and "error" refuses it. (An index has a vector for each chunk of it. Here a text has
            one.)

    Raises:
        TypeError, ValueError: the model is not trained for `rate`, or `overflow` is another word.

    Example:
        encoder = ClaraEncoder(model)
        scores = encoder.similarity(
            encoder.encode_query(["Who built the mill?"]), encoder.encode_document(texts)
        )
    """

    similarity_fn_name = "cosine"
    mteb_model_meta = None

    def __init__(
        self, model: Clara, rate: int | None = None, *, overflow: Overflow = "truncate"
    ) -> None:
        if overflow not in ("truncate", "error"):
            raise ValueError(f'overflow must be "truncate" or "error", got {overflow!r}')
        self.model = model
        self.rate = model.rate(rate)
        self.overflow: Overflow = overflow

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def max_seq_length(self) -> int:
        """The most tokens of a text that are read."""
        return self.model.config.document_length

    def get_sentence_embedding_dimension(self) -> int:
        """Numbers of a vector: `m * H`, or `H` where documents are ranked by their mean."""
        config = self.model.config
        if config.ranking_rule == "mean" or config.memory_tokens is None:
            return self.model.hidden_size
        return config.memory_tokens * self.model.hidden_size

    def encode_query(
        self,
        texts: str | Sequence[str],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        **others: Any,
    ) -> Any:
        """Vectors of questions, by the query reasoner.

        Args:
            texts: questions, or a single one.
            batch_size: texts that are encoded together, at least 1.
            convert_to_numpy: False gives a list of tensors, one for each text.
            convert_to_tensor: give one tensor on the model's device.
            others: what harnesses pass for other encoders, such as a prompt; it changes nothing.

        Returns:
            float32 `[N, D]`, see `get_sentence_embedding_dimension`; `[D]` for a single text.

        Raises:
            TypeError, ValueError: a text is no string, empty, or longer than the model's limit
                (unless the model truncates); names its position.
        """
        return self._encode(
            texts,
            self._query_vectors,
            "encode queries",
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
        )

    def encode_document(
        self,
        texts: TextLike | Sequence[TextLike],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = True,
        **others: Any,
    ) -> Any:
        """Vectors of documents, by the compressor.

        A document without any text, as some corpora have them, gets a vector of zeros: its cosine
        to everything is 0.

        Args:
            texts: documents, or a single one. Of a mapping the title and the text are read, with a
                blank between them.

        Other arguments, results and errors are those of `encode_query`.
        """
        return self._encode(
            texts,
            self._document_vectors,
            "encode documents",
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            normalize_embeddings=normalize_embeddings,
        )

    def encode(
        self,
        texts: TextLike | Sequence[TextLike],
        *arguments: Any,
        prompt_type: Any = None,
        **options: Any,
    ) -> Any:
        """`encode_query` or `encode_document`, for harnesses that have one method for both.

        Args:
            texts: as there, or batches `{"text": [...]}` as MTEB's loaders give them.
            prompt_type: "query" or "document" ("passage", "corpus"), or MTEB's enumeration of them.
                None means documents.

        Raises:
            ValueError: it is another word.
        """
        if not isinstance(texts, str | Mapping):
            texts = [text for each in texts for text in _of_batch(each)]
        kind = getattr(prompt_type, "value", prompt_type)
        if kind in _QUERIES:
            questions: Any = texts
            return self.encode_query(questions, *arguments, **options)
        if kind is not None and kind not in _DOCUMENTS:
            known = ", ".join(map(repr, (*_QUERIES, *_DOCUMENTS)))
            raise ValueError(f"prompt_type must be one of {known} or None, got {kind!r}")
        return self.encode_document(texts, *arguments, **options)

    # BEIR's names.
    encode_queries = encode_query
    encode_corpus = encode_document

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosines of all pairs.

        Args:
            first: `[A, D]` or `[D]`, vectors as any of the methods gives them.
            second: `[B, D]` or `[D]`.

        Returns:
            float32 `[A, B]`.

        Raises:
            ValueError: the vectors of both have unequal numbers.
        """
        one, other = _matrix(first), _matrix(second)
        if one.shape[1] != other.shape[1]:
            raise ValueError(
                f"vectors of {one.shape[1]} and {other.shape[1]} numbers have no cosine"
            )
        return normalize(one, dim=1) @ normalize(other.to(one.device), dim=1).T

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosine of each vector of the first with that in the same place of the second.

        Args:
            first, second: `[N, D]`.

        Returns:
            float32 `[N]`.
        """
        one, other = _matrix(first), _matrix(second)
        return (normalize(one, dim=1) * normalize(other.to(one.device), dim=1)).sum(1)

    def _query_vectors(self, texts: Mapping[int, str]) -> Tensor:
        config = self.model.config
        for row, text in texts.items():
            if not text.strip():
                raise ValueError(f"texts[{row}] is empty")
            tokens = len(self.model.tokenizer.encode_texts([text])[0].ids)
            if tokens > config.document_length and config.overflow != "truncate":
                raise ValueError(
                    f"texts[{row}] has {tokens} tokens, the limit is {config.document_length}"
                )
        return self.model.encode_queries(list(texts.values())).flatten(1)

    def _document_vectors(self, texts: Mapping[int, str]) -> Tensor:
        size = self.get_sentence_embedding_dimension()
        vectors = torch.zeros(len(texts), size, device=self.device)
        documents = [Document(f"texts[{row}]", text) for row, text in texts.items()]
        rows = [place for place, document in enumerate(documents) if document.text.strip()]
        if rows:
            compressed = self.model.compress(
                [documents[row] for row in rows],
                compression_rate=self.rate,
                overflow=self.overflow,
            )
            found = compressed.padded.vectors(self.model.config.ranking_rule)
            vectors[rows] = found.to(vectors)
        return vectors

    def _encode(
        self,
        texts: Any,
        vectors: Callable[[Mapping[int, str]], Tensor],
        title: str,
        *,
        batch_size: int,
        show_progress_bar: bool | None,
        convert_to_numpy: bool,
        convert_to_tensor: bool,
        normalize_embeddings: bool,
    ) -> Any:
        size = as_integer(batch_size, "batch_size", least=1)
        single = isinstance(texts, str | Mapping)
        read = [_text(each, row) for row, each in enumerate([texts] if single else texts)]
        found = torch.empty(len(read), self.get_sentence_embedding_dimension(), device=self.device)
        # Texts of like length together, the longest first: what is too large fails at once.
        order = sorted(range(len(read)), key=lambda row: -len(read[row]))
        with document_progress(title, len(read), visible=bool(show_progress_bar)) as bar:
            for begin in range(0, len(order), size):
                rows = order[begin : begin + size]
                found[rows] = vectors({row: read[row] for row in rows}).to(found)
                bar.advance(len(rows))
        if normalize_embeddings:
            found = normalize(found, dim=1)
        if convert_to_tensor:
            return found[0] if single else found
        if convert_to_numpy:
            return (found[0] if single else found).cpu().numpy()
        return found[0] if single else list(found)


def _of_batch(given: Any) -> Sequence[Any]:
    """The texts of a batch; a text, or a document of a corpus, is a batch of one."""
    texts = given.get("text") if isinstance(given, Mapping) else None
    return texts if isinstance(texts, list | tuple) else [given]


def _text(given: Any, row: int) -> str:
    """The text that is read of a document in any of the accepted forms."""
    if isinstance(given, Mapping):
        text = given.get("text", given.get("contents"))
        parts = [part for part in (given.get("title"), text) if part]
        if text is None or not all(isinstance(part, str) for part in parts):
            raise TypeError(f'texts[{row}] must have "text", a string, got {given!r:.80}')
        given = " ".join(parts).strip()
    check_text(given, f"texts[{row}]")
    return str(given)


def _matrix(vectors: Any) -> Tensor:
    """Vectors of any kind as float32 `[N, D]`."""
    if isinstance(vectors, list | tuple) and vectors and isinstance(vectors[0], Tensor):
        vectors = torch.stack(list(vectors))
    made = torch.as_tensor(vectors).float()
    return made[None] if made.ndim == 1 else made
