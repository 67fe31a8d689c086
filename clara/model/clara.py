"""`Clara`: compress documents, encode questions, rank, and answer from memory tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clara.backbone import trained as own_backbone
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.backbone.loading import backbone_digest, load_backbone
from clara.backbone.output_path import states_to_logits
from clara.checks import as_integer
from clara.config import ClaraConfig, Overflow
from clara.memory.documents import CompressedDocuments
from clara.model import checkpoint, encoding
from clara.model.answers import Answer, Clock, Ranking, find, padded_ranking
from clara.model.modules import ClaraCore
from clara.model.ranking import Candidates, check_questions, check_top_k, per_question
from clara.terminal.progress import document_progress
from clara.text.passages import (
    DocumentLike,
    as_documents,
    prepare_passages,
    prepare_questions,
)
from clara.text.prompts import build_prompt, text_background

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Clara(ClaraCore):
    """A backbone with compressor, query reasoner and generator adapters.

    Build one with `from_backbone` (untrained adapters) or `from_pretrained`. Public methods
    compute without gradients and in evaluation mode, and leave the model as it was; threads may
    share one model. `encode` and `answer_loss` are the differentiable parts that training uses.
    """

    # Construction, saving

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | Path,
        config: ClaraConfig | None = None,
        *,
        device: str | torch.device | None = None,
        seed: int = 0,
    ) -> Clara:
        """A new model with untrained adapters, which compute what the backbone computes.

        Args:
            name_or_path: hub id, folder or GGUF file of a causal language model.
            device: CUDA if there is one, else CPU.
            seed: of the adapters' and memory tokens' initial values.

        Raises:
            BackboneError, ValueError: the backbone cannot be loaded, or does not fit the config.
        """
        config = config or ClaraConfig()
        backbone = _absolute(name_or_path)
        if config.backbone not in (None, str(name_or_path), backbone):
            raise ValueError(f"config.backbone {config.backbone!r} is not {str(name_or_path)!r}")
        config = config.replace(backbone=backbone)
        model = cls._around_backbone(config, _device(device), seed=seed)
        model.memory_tokens.initialise(model.backbone.get_input_embeddings().weight, seed=seed)
        model.adapters.copy(COMPRESSOR, QUERY_REASONER)
        return model

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        backbone: str | Path | None = None,
        device: str | torch.device | None = None,
        merge_generator: bool = False,
        **settings: Any,
    ) -> Clara:
        """Load a saved model, all adapters of it.

        Args:
            name_or_path: folder or hub id of a model that `save_pretrained` wrote.
            backbone: where the backbone is now, if not where the configuration says.
            merge_generator: see `merge_generator`.
            settings: fields of `ClaraConfig`. Those that say how to run the model (`dtype`,
                `quantization`, `attention`, `top_k`, …) replace the saved ones; those that
                define it must agree with the checkpoint.

        Raises:
            ValueError: no model there, something missing or unreadable in it, or a setting that
                contradicts it.
        """
        folder = checkpoint.locate(name_or_path)
        config = checkpoint.read_config(folder, settings)
        if backbone is not None:
            config = config.replace(backbone=_absolute(backbone))
        if config.backbone is None:
            raise ValueError(f"{folder}: the configuration names no backbone; pass backbone=")
        own = config.backbone == own_backbone.FOLDER and backbone is None
        if own:
            config = config.replace(backbone=str((folder / own_backbone.FOLDER).resolve()))
        model = cls._around_backbone(config, _device(device))
        checkpoint.load_weights(model, folder)
        model.owns_backbone = own
        if merge_generator:
            model.merge_generator()
        return model

    @classmethod
    def _around_backbone(cls, config: ClaraConfig, device: torch.device, seed: int = 0) -> Clara:
        default = "float32" if device.type == "cpu" else "bfloat16"
        backbone, tokenizer = load_backbone(
            str(config.backbone),
            device=device,
            dtype=getattr(torch, config.dtype or default),
            quantization=config.quantization,
            attention=config.attention,
        )
        digest = backbone_digest(str(config.backbone))
        return cls(backbone, tokenizer, config, backbone_digest=digest, seed=seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters, memory tokens, configuration, tokenizer and model card, no pickle."""
        checkpoint.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit."""
        return checkpoint.push(self, repo_id, private=private, token=token)

    def load_weights(self, folder: Path) -> None:
        """Take on the weights of a model folder of the same configuration.

        Raises:
            ValueError: something is missing, unreadable or does not fit.
        """
        checkpoint.load_weights(self, folder)

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
            batch_tokens: tokens of one forward, memory slots included. By default 1024 on CPU,
                where larger buffers only cost page faults, and 16,384 on a GPU.
            overflow: what to do with documents over the limit; default from the configuration.
            on_progress: called with the number of rows done since the last call.

        Returns:
            One row per document, or per chunk of it (`CompressedDocuments.ids`), in order.

        Raises:
            TypeError, ValueError: a document is of another type, has no usable text, id or title,
                or the id of an earlier one; names its position.
            ValueError: a document is empty or, with overflow="error", too long; names its id.
        """
        passages = prepare_passages(
            self.tokenizer,
            as_documents(documents),
            limit=self.config.document_length,
            overflow=self.config.replace(overflow=overflow or self.config.overflow).overflow,
        )
        with document_progress("compress", len(passages), visible=show_progress_bar) as bar:

            def advance(rows: int) -> None:
                bar.advance(rows)
                if on_progress is not None:
                    on_progress(rows)

            memory = encoding.encode_passages(self, passages, COMPRESSOR, batch_tokens, advance)
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
        """Questions in the documents' space: `[B, m, H]`.

        Raises:
            ValueError: a question is empty, or longer than the document limit.
        """
        passages = prepare_questions(
            self.tokenizer,
            questions,
            limit=self.config.document_length,
            overflow=self.config.overflow,
        )
        return encoding.encode_passages(self, passages, QUERY_REASONER, batch_tokens)

    def rank(
        self,
        questions: Sequence[str] | Tensor,
        documents: Any,
        top_k: int | None = None,
    ) -> Ranking:
        """Rank each question's candidates by cosine similarity; `top_k` above their number
        selects all.

        Args:
            questions: texts, or their `encode_queries` `[B, m, H]`.
            documents: `CompressedDocuments`, memory `[N, m, H]` or raw documents for all
                questions, `[B, N, m, H]`, or a list with one of these for each question.
            top_k: default from the configuration.
        """
        queries = questions if isinstance(questions, Tensor) else self.encode_queries(questions)
        candidates = Candidates.gather(self, documents, len(queries))
        return padded_ranking(candidates.rank(queries, self._top_k(top_k)))

    def generate(
        self,
        questions: Sequence[str],
        memory: Tensor | Sequence[Tensor | CompressedDocuments],
        *,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """Answer questions from memory; greedy unless `generation_config` says otherwise.

        An answer ends at the tokens or the text that end a turn in the backbone's chat format, at
        those stored with the backbone, and at the tokenizer's end of sequence; with an
        `eos_token_id` in `generation_config`, at that alone. What ends it is left out of its text,
        `stop_strings` too; an ordinary token that is made the `eos_token_id` is part of the text.

        Args:
            memory: `[B, k, m, H]`, or one `[k_i, m, H]` for each question.
            generation_config: its limits `max_length` and `min_length` count the prompt of each
                question and its answer; `max_new_tokens` and `min_new_tokens` win over them.
                `repetition_penalty` and `no_repeat_ngram_size` look at the answer alone, `max_time`
                is for each batch. What cannot work with a prompt of memory is refused.
            max_new_tokens: default 128, unless `generation_config` has a limit.
            max_prompt_tokens: budget of a prompt; the backbone's positions limit it anyway.

        Raises:
            TypeError: a number is none, such as `True` or `4.0` for an integer.
            ValueError: a prompt is over the budget, or a setting is refused.
        """
        from clara.model import generation

        each = per_question(self, questions, memory)
        settings = generation.generation_settings(self, generation_config, max_new_tokens)
        prompts = self._prompts(questions, [len(m) for m in each])
        generation.check_budget(self, prompts, settings, max_prompt_tokens)
        slots = [m.reshape(-1, self.hidden_size).to(self.device) for m in each]
        return generation.generate(
            self, prompts, slots, settings, batch_size=batch_size, adapter=GENERATOR
        )

    def stream(
        self,
        question: str,
        memory: Tensor | CompressedDocuments,
        *,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> Iterator[str]:
        """Like `generate` for one question and memory `[k, m, H]`, in pieces as they come."""
        from clara.model import generation

        each = per_question(self, [question], [memory])
        settings = generation.generation_settings(self, generation_config, max_new_tokens)
        if (settings.num_beams or 1) > 1:
            raise ValueError(
                "stream cannot use beam search: generation_config.num_beams must be 1, got "
                f"{settings.num_beams}; generate can"
            )
        prompts = self._prompts([question], [len(each[0])])
        generation.check_budget(self, prompts, settings, max_prompt_tokens)
        slots = each[0].reshape(-1, self.hidden_size).to(self.device)
        return generation.stream(self, prompts[0], slots, settings, adapter=GENERATOR)

    def answer(
        self,
        questions: Sequence[str],
        documents: Any,
        *,
        top_k: int | None = None,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[Answer]:
        """Rank documents for each question and answer from the best.

        Args:
            documents: as in `rank`, or an index with a method `search(queries, k)`.
        """
        clock = Clock(self.device)
        queries = self.encode_queries(questions)
        clock.lap("query")
        found = find(self, queries, documents, self._top_k(top_k))
        clock.lap("rank")
        texts = self.generate(
            questions,
            [each.memory for each in found],
            generation_config=generation_config,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            batch_size=batch_size,
        )
        clock.lap("generate")
        return [
            Answer(
                text=text.strip(),
                documents=each.documents,
                prompt_tokens=self.prompt_tokens(question, len(each.memory)),
                text_prompt_tokens=self.text_prompt_tokens(question, each.texts)
                if each.documents
                else None,
                timings_ms=dict(clock.laps),
            )
            for question, text, each in zip(questions, texts, found, strict=True)
        ]

    def answer_loss(
        self,
        questions: Sequence[str],
        memory: Tensor | Sequence[Tensor],
        answers: Sequence[str],
    ) -> Tensor:
        """Mean cross-entropy of the answers' tokens given question and memory (a 0-d tensor).

        Only answer positions go through the output head. Differentiable in the generator and in
        `memory`: `[B, k, m, H]`, or one `[k_i, m, H]` for each question.

        Raises:
            ValueError: a prompt is longer than the backbone's positions, or the backbone's logits
                do not come from its final states alone.
        """
        return encoding.answer_loss(self, questions, memory, answers)

    def answer_from_text(
        self,
        questions: Sequence[str],
        documents: Sequence[Sequence[str]],
        *,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """Plain-text retrieval-augmented generation with the bare backbone, for comparison.

        Args:
            documents: the texts to put into each question's prompt.
        """
        from clara.model import generation

        check_questions(questions, len(documents))
        settings = generation.generation_settings(self, None, max_new_tokens)
        prompts = [
            build_prompt(self.tokenizer, self.config.prompt, text_background(texts), question)
            for question, texts in zip(questions, documents, strict=True)
        ]
        generation.check_budget(self, prompts, settings, max_prompt_tokens)
        empty = torch.empty(0, self.hidden_size, dtype=self.dtype, device=self.device)
        return generation.generate(
            self,
            prompts,
            [empty] * len(prompts),
            settings,
            batch_size=batch_size,
            adapter=None,
        )

    @torch.no_grad()
    def logit_lens(self, memory: Tensor, top: int = 50) -> list[Any]:
        """The words behind memory vectors: their projection through the output head.

        Args:
            memory: `[m, H]` or `[..., m, H]`, such as `encode_queries` returns.
            top: vocabulary entries looked at for each vector; those without a letter or digit
                are left out.

        Returns:
            Nested lists in the shape of `memory` less its last dimension, of lists of words.
        """
        top = as_integer(top, "top", least=1)
        if memory.ndim > 1:
            return [self.logit_lens(each, top) for each in memory]
        (logits,) = states_to_logits(self.backbone, memory.to(self.device, self.dtype)[None])
        known = len(self.tokenizer.tokenizer)
        best = logits[:known].topk(min(top, known)).indices.tolist()
        words = (self.tokenizer.decode([token]).strip() for token in best)
        return [word for word in words if any(c.isalnum() for c in word)]

    def _top_k(self, given: int | None) -> int:
        return check_top_k(self.config.top_k if given is None else given)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _absolute(name_or_path: str | Path) -> str:
    """A local path as one that holds in any folder; a hub id as it is."""
    path = Path(os.path.expanduser(name_or_path))
    return str(path.resolve()) if path.exists() else str(name_or_path)
