"""`Clara`: compress documents, encode questions, rank, and answer from memory tokens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clara.backbone import trained
from clara.backbone.adapters import GENERATOR
from clara.backbone.files import BackboneError
from clara.backbone.hub import HubError
from clara.backbone.loading import backbone_digest, load_backbone
from clara.backbone.output_path import states_to_logits
from clara.backbone.packaged import copy_hint
from clara.backbone.processor import torch_dtype
from clara.config import ClaraConfig
from clara.errors.checks import as_integer
from clara.memory.searching import SearchableIndex
from clara.model import checkpoint, encoding
from clara.model.answers import Answer, Clock, Found, counter_of_text_prompt
from clara.model.encoding import norm_ratio
from clara.model.ranking import (
    Documents,
    MemoryOfQuestion,
    check_questions,
    counts_of,
    memory_of_each_question,
)
from clara.model.retrieval import Retriever
from clara.text.prompts import build_text_prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from clara.model.generation import Task


class Clara(Retriever):
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
        """Make a new model. Its adapters are untrained and change nothing yet.

        Args:
            name_or_path: hub id, folder or GGUF file of a causal language model.
            device: default: CUDA if available, else CPU.
            seed: seed of the initial values of adapters and memory tokens.

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
        if model.connectors:
            model.connectors.initialise(norm_ratio(model), seed=seed)
        model.copy_compressor()
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
        """Load a saved model with all its adapters.

        Args:
            name_or_path: folder or hub id of a model that `save_pretrained` wrote, or the name of
                one that comes with this project, such as "smollm2-135m-factbook".
            backbone: backbone to use instead of the one the configuration names. Without it, a
                model made with the copy of a backbone in an installed package is loaded on that.
            merge_generator: see `merge_generator`.
            settings: fields of `ClaraConfig`. Those that say how to run the model (`dtype`,
                `quantization`, `attention`, `top_k`, …) replace the saved ones; those that
                define it must agree with the checkpoint.

        Raises:
            SavedModelError: there is no model, a file is missing or unreadable, or a setting
                contradicts the checkpoint.
            HubError: it cannot be got from the hub, or is no CLaRa model there.

        Warns:
            UserWarning: the backbone has other weights than the one the model was made with.
        """
        folder = checkpoint.locate(name_or_path)
        config = checkpoint.read_config(folder, settings)
        own = config.backbone == trained.FOLDER and backbone is None
        place = checkpoint.backbone_of(config, folder) if backbone is None else _absolute(backbone)
        config = config.replace(backbone=place)
        model = cls._around_backbone(config, _device(device))
        checkpoint.load_weights(model, folder)
        checkpoint.warn_of_other_backbone(folder, config, model.config)
        model.owns_backbone = own
        if merge_generator:
            model.merge_generator()
        return model

    @classmethod
    def _around_backbone(cls, config: ClaraConfig, device: torch.device, seed: int = 0) -> Clara:
        try:
            backbone, tokenizer = load_backbone(
                str(config.backbone),
                device=device,
                dtype=torch_dtype(config.dtype, device),
                quantization=config.quantization,
                attention=config.attention,
            )
        except BackboneError as error:
            # A copy helps where the hub failed, and nowhere else.
            hint = copy_hint(str(config.backbone)) if isinstance(error.__cause__, HubError) else ""
            if not hint:
                raise
            raise BackboneError(f"{error}{hint}") from error
        digest = backbone_digest(str(config.backbone))
        config = config.replace(backbone_digest=digest)
        return cls(backbone, tokenizer, config, backbone_digest=digest, seed=seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters, memory tokens, configuration, tokenizer and model card.

        Nothing is pickled.
        """
        checkpoint.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the files that `save_pretrained` writes; returns the address of the commit."""
        return checkpoint.push(self, repo_id, private=private, token=token)

    def load_weights(self, folder: Path) -> None:
        """Load the weights of a model folder with the same configuration.

        Raises:
            SavedModelError: something is missing, unreadable or does not fit.
        """
        checkpoint.load_weights(self, folder)

    def generate(
        self,
        questions: Sequence[str],
        memory: Tensor | Sequence[MemoryOfQuestion],
        *,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[str]:
        """Answer questions from memory; greedy unless `generation_config` says otherwise.

        An answer ends at the end of a turn in the backbone's chat format, at the stop tokens
        stored with the backbone, and at the tokenizer's end-of-sequence token. An `eos_token_id`
        in `generation_config` replaces all of these. The text of an answer leaves out the stop
        token or stop string that ended it; but an ordinary token given as `eos_token_id` is part
        of the text.

        Args:
            memory: for each question `[k_i, m, H]`, compressed documents, or a list with `[m_i, H]`
                of each document. A tensor holds memory alone, no padding.
            generation_config: `max_length` and `min_length` count the prompt and the answer of
                each question; `max_new_tokens` and `min_new_tokens` override them.
                `repetition_penalty` and `no_repeat_ngram_size` look only at the answer. `max_time`
                limits each batch. A setting that cannot work with memory raises an error.
            max_new_tokens: default 128, unless `generation_config` has a limit.
            max_prompt_tokens: token limit of a prompt; the backbone's positions are a limit too.

        Raises:
            TypeError: a number has the wrong type, such as `True` or `4.0` for an integer.
            ValueError: a prompt is over the limit, or a setting cannot be used.
        """
        from clara.model import generation

        each = memory_of_each_question(questions, memory, self.read_memory)
        task = self._task(questions, each, generation_config, max_new_tokens, max_prompt_tokens)
        return generation.generate(self, task, batch_size=batch_size)

    def stream(
        self,
        question: str,
        memory: MemoryOfQuestion,
        *,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
    ) -> Iterator[str]:
        """Like `generate` for one question and its memory; yields the text in pieces."""
        from clara.model import generation

        each = memory_of_each_question([question], [memory], self.read_memory)
        limits = max_new_tokens, max_prompt_tokens
        task = self._task([question], each, generation_config, *limits, streamed=True)
        return generation.stream(self, task)

    def answer(
        self,
        questions: Sequence[str],
        documents: Documents | SearchableIndex,
        *,
        top_k: int | None = None,
        rerank: int | None = None,
        generation_config: GenerationConfig | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        batch_size: int = 8,
    ) -> list[Answer]:
        """Rank documents for each question and answer from the best.

        Args:
            documents, top_k, rerank: as in `retrieve`.

        Raises:
            TypeError, ValueError: those of `retrieve` and `generate`.
        """
        from clara.model import generation

        clock = Clock(self.device)
        found = self.retrieve(questions, documents, top_k=top_k, rerank=rerank, lap=clock.lap)
        memory = [each.memory for each in found]
        task = self._task(questions, memory, generation_config, max_new_tokens, max_prompt_tokens)
        texts = generation.generate(self, task, batch_size=batch_size)
        clock.lap("generate")
        return [
            Answer(
                text=text.strip(),
                documents=each.documents,
                prompt_tokens=len(prompt.ids),
                # A function in place of the number, see `CountedWhenRead`.
                text_prompt_tokens=self._text_prompt_counter(question, each),  # type: ignore[arg-type]
                timings_ms=dict(clock.laps),
            )
            for question, text, each, prompt in zip(
                questions, texts, found, task.prompts, strict=True
            )
        ]

    def answer_loss(
        self,
        questions: Sequence[str],
        memory: Tensor | Sequence[MemoryOfQuestion],
        answers: Sequence[str],
    ) -> Tensor:
        """Mean cross-entropy of the answers' tokens given question and memory (a 0-d tensor).

        Only answer positions go through the output head. The loss is differentiable in the
        generator and in `memory`, which is given as in `generate`.

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
        """Answer from plain text with the backbone alone (ordinary RAG), for comparison.

        Args:
            documents: texts for the prompt of each question.
        """
        from clara.model import generation

        check_questions(questions, len(documents))
        prompts = [
            build_text_prompt(self.tokenizer, self.config.prompt, texts, question)
            for question, texts in zip(questions, documents, strict=True)
        ]
        empty = torch.empty(0, self.hidden_size, dtype=self.dtype, device=self.device)
        task = generation.prepare(
            self,
            prompts,
            [empty] * len(prompts),
            adapter=None,
            generation_config=None,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )
        return generation.generate(self, task, batch_size=batch_size)

    @torch.no_grad()
    def logit_lens(self, memory: Tensor | Sequence[str], top: int = 50) -> list[Any]:
        """Show the words that memory encodes: final states projected through the output head.

        Args:
            memory: questions, whose final states at the memory slots are projected. In memory form
                "learned" also memory `[m, H]` or `[..., m, H]`, which is final states there.
            top: number of vocabulary entries per vector; entries without a letter or digit are
                left out.

        Returns:
            Lists of words, nested as memory tokens are: `[B][m_i]` for B questions.

        Raises:
            ValueError: memory of memory form "spans" is given. It is no final state.
        """
        top = as_integer(top, "top", least=1)
        if not isinstance(memory, Tensor):
            states = self._question_states(memory)
            return [[self._words(state, top) for state in each] for each in states]
        if self.connectors:
            raise ValueError(
                'logit_lens needs questions in memory form "spans", got a tensor: memory is no '
                "final state there"
            )
        if memory.ndim > 1:
            return [self.logit_lens(each, top) for each in memory]
        return self._words(memory, top)

    def _words(self, state: Tensor, top: int) -> list[str]:
        """The most likely vocabulary entries of a final state `[H]`."""
        (logits,) = states_to_logits(self.backbone, state.to(self.device, self.dtype)[None])
        known = len(self.tokenizer.tokenizer)
        best = logits[:known].topk(min(top, known)).indices.tolist()
        words = (self.tokenizer.decode([token]).strip() for token in best)
        return [word for word in words if any(c.isalnum() for c in word)]

    def _task(
        self,
        questions: Sequence[str],
        memory: Sequence[Sequence[Tensor]],
        generation_config: GenerationConfig | None,
        max_new_tokens: int | None,
        max_prompt_tokens: int | None,
        *,
        streamed: bool = False,
    ) -> Task:
        """Questions with memory `[m_i, H]` of the documents of each, ready to be answered."""
        from clara.model import generation

        none = torch.empty(0, self.hidden_size, dtype=self.dtype)
        return generation.prepare(
            self,
            self.memory_prompts(questions, [counts_of(documents) for documents in memory]),
            [torch.cat([*documents]) if documents else none for documents in memory],
            adapter=GENERATOR,
            generation_config=generation_config,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            streamed=streamed,
        )

    def _text_prompt_counter(self, question: str, found: Found) -> Callable[[], int] | None:
        if not found.documents:
            return None
        template = self.config.prompt
        return counter_of_text_prompt(self.tokenizer, template, question, found.texts)


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _absolute(name_or_path: str | Path) -> str:
    """A local path as one that holds in any folder; a hub id as it is."""
    path = Path(os.path.expanduser(name_or_path))
    return str(path.resolve()) if path.exists() else str(name_or_path)
