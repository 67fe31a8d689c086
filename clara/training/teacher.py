"""The teacher of distillation: a model of `clara train text`, which reads the documents' text."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clara.backbone.adapters import COMPRESSOR, GENERATOR
from clara.backbone.chunked_head import CHUNK_LOGITS
from clara.backbone.divergence import most_likely
from clara.backbone.loading import backbone_digest, resolve_backbone
from clara.backbone.output_path import states_to_logits
from clara.backbone.packed_forward import positions_of
from clara.backbone.rotary import switching_lengths
from clara.config import ClaraConfig
from clara.model.checkpoint import backbone_of, locate, read_config, warn_of_other_backbone
from clara.model.clara import Clara
from clara.model.encoding import BATCH_TOKENS_CPU, BATCH_TOKENS_GPU, answer_states
from clara.model.shipped import CONFIG
from clara.text.branches import common_rows, pack_branches, packed_order
from clara.text.prompts import answer_end
from clara.text.tokenizer import SafeTokenizer
from clara.training.arguments import ClaraTrainingArguments
from clara.training.encoder import Encoder
from clara.training.folder import MODEL, checkpoints, is_run, read_record
from clara.training.questions import Asking, QuestionPrompt
from clara.training.settings import SettingsError

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class TeacherFolder:
    """Where a teacher is, and what it is.

    Attributes:
        given: as the settings name it.
        folder: of the model.
        config: of the model.
        adapter: what it reads text with: the generator; None for a backbone that was trained
            itself.
    """

    given: str
    folder: Path
    config: ClaraConfig
    adapter: str | None

    @classmethod
    def of(cls, given: str) -> TeacherFolder:
        """The teacher in a model folder, a run's folder, or on the hub.

        Raises:
            SettingsError: there is none, the run is not finished, or it trained something else.
        """
        folder = _model_folder(given)
        record = read_record(folder)
        if record is None and folder.name == MODEL:
            record = read_record(folder.parent)
        if record is not None and record.get("stage") != "text":
            raise SettingsError(
                f"teacher {given}: was trained by clara train {record.get('stage')}; give a model "
                "of clara train text, which reads the documents' text"
            )
        alone = record is not None and (record.get("arguments") or {}).get("train_backbone")
        try:
            config = read_config(folder, {})
        except ValueError as error:
            raise SettingsError(f"teacher {given}: {error}") from error
        if config.backbone is None:
            raise SettingsError(f"teacher {given}: its configuration names no backbone")
        return cls(given, folder, config, None if alone else GENERATOR)

    @property
    def backbone(self) -> str:
        return backbone_of(self.config, self.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what its probabilities depend on: weights, adapter and tokenizer.

        The prompt, which they depend on too, is in the configuration.

        Raises:
            SettingsError: the adapter cannot be read.
            BackboneError: nor can the backbone.
        """
        config = self.config
        settings = [
            config.lora_rank,
            config.lora_alpha,
            self.adapter,
            backbone_digest(self.backbone),
        ]
        digest = hashlib.sha256(json.dumps(settings).encode())
        if self.adapter is not None:
            file = self.folder / self.adapter / _WEIGHTS
            try:
                digest.update(file.read_bytes())
            except OSError as error:
                raise SettingsError(
                    f"teacher {self.given}: cannot read {file}: {error.strerror or error}"
                ) from error
        tokenizer = self.tokenizer.tokenizer
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        digest.update(str(tokenizer.chat_template).encode())
        return digest.hexdigest()

    @cached_property
    def tokenizer(self) -> SafeTokenizer:
        from transformers import AutoTokenizer

        source = resolve_backbone(self.backbone)
        return SafeTokenizer(AutoTokenizer.from_pretrained(source, trust_remote_code=False))


def load_reader(folder: Path, **settings: Any) -> Clara:
    """The model in a folder that reads text; the folder may hold the generator alone.

    Its other adapters are untrained then, and mean nothing.

    Args:
        settings: "device", and fields of `ClaraConfig` that say how to run the model.

    Raises:
        SavedModelError: a file is missing, unreadable or does not fit.
        BackboneError: the backbone cannot be loaded.
    """
    if (folder / COMPRESSOR).exists():
        return Clara.from_pretrained(folder, **settings)
    device = settings.pop("device", None)
    saved = read_config(folder, settings)
    backbone = backbone_of(saved, folder)
    model = Clara.from_backbone(backbone, saved.replace(backbone=None), device=device)
    model.adapters.load(folder, (GENERATOR,))
    warn_of_other_backbone(folder, saved, model.config)
    return model


def teacher_of(arguments: ClaraTrainingArguments) -> TeacherFolder | None:
    """The teacher that the settings ask for; None without one or with a weight of 0.

    Raises:
        SettingsError: see `TeacherFolder.of`.
    """
    if arguments.teacher is None or not arguments.distillation_weight:
        return None
    return TeacherFolder.of(arguments.teacher)


def _model_folder(given: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir() and not (path / CONFIG).is_file() and is_run(path):
        if (path / MODEL).is_dir():
            return path / MODEL
        saved = checkpoints(path)
        hint = f"; give one of its checkpoints, such as {saved[-1]}" if saved else ""
        raise SettingsError(f"teacher {given}: the run has no trained model yet{hint}")
    try:
        return locate(given)
    except ValueError as error:
        raise SettingsError(f"teacher: {error}") from error


def check_tokenizers(given: str, teacher: SafeTokenizer, student: SafeTokenizer) -> None:
    """Refuse a teacher whose tokens mean something else than the model's.

    Args:
        given: the teacher, as the settings name it.

    Raises:
        SettingsError: the vocabularies differ, or answers end in another way.
    """
    theirs, ours = (each.tokenizer.get_vocab() for each in (teacher, student))
    for token in sorted(theirs.keys() | ours.keys()) if theirs != ours else ():
        if theirs.get(token) != ours.get(token):
            raise SettingsError(
                f"teacher {given}: has another vocabulary than the model: token {token!r} is "
                f"{theirs.get(token)} there and {ours.get(token)} here"
            )
    there, here = (answer_end(each) for each in (teacher, student))
    if there != here:
        raise SettingsError(
            f"teacher {given}: has another chat template than the model: its answers end with "
            f"{there}, those of the model with {here}"
        )


class TaughtAnswer(NamedTuple):
    """What a teacher says about an answer.

    Attributes:
        prompt: the answer, in the prompt that it was asked with.
        tokens: of the answer, as the teacher reads it.
        ids, log_probs: see `clara.backbone.divergence.most_likely`, on the CPU.
    """

    prompt: QuestionPrompt
    tokens: list[int]
    ids: Tensor
    log_probs: Tensor


class Teacher:
    """A loaded teacher.

    Args:
        student: the model that learns from it. The teacher computes on its device and in its
            dtype, and shares the weights that are equal and do not train.
        top: how many of the most likely tokens it tells.
    """

    def __init__(self, place: TeacherFolder, student: Clara, top: int) -> None:
        self._adapter, self._top = place.adapter, top
        attention = student.config.attention
        # Loading must not change the random numbers that the student's dropout gets.
        with torch.random.fork_rng(devices=[]):
            self._model = load_reader(
                place.folder, device=student.device, dtype=student.dtype, attention=attention
            )
        share_frozen_weights(student.backbone, self._model.backbone)
        backbone = self._model.backbone
        self._asking = Asking(switching=switching_lengths(backbone))
        self._alone = attention == "flash_attention_2"
        self._encoder = Encoder(
            self._model.tokenizer, self._model.config, max_prompt_tokens=positions_of(backbone)
        )
        on_cpu = self._model.device.type == "cpu"
        self._batch_tokens = BATCH_TOKENS_CPU if on_cpu else BATCH_TOKENS_GPU

    def read(self, prompts: Sequence[QuestionPrompt]) -> Iterator[list[TaughtAnswer]]:
        """What the teacher says about answers, some at a time.

        Those whose documents' text does not fit its positions are left out.
        """
        batch: list[list[QuestionPrompt]] = []
        total = 0
        for group in self._groups(prompts):
            shared = common_rows(group) * (len(group) - 1)
            rows = sum(len(prompt.ids) for prompt in group) - shared
            if batch and total + rows > self._batch_tokens:
                yield self._answers(batch)
                batch, total = [], 0
            batch.append(group)
            total += rows
        if batch:
            yield self._answers(batch)

    def _groups(self, prompts: Sequence[QuestionPrompt]) -> Iterator[list[QuestionPrompt]]:
        """The teacher's prompts; those of a group are read with one copy of the documents."""
        together: dict[tuple[str, ...], list[QuestionPrompt]] = defaultdict(list)
        for prompt in prompts:
            together[prompt.documents].append(prompt)
        for asked in together.values():
            own = self._encoder.usable(self._prompt, asked)
            yield from ([each] for each in own) if self._alone else self._asking.groups(own)

    def _prompt(self, prompt: QuestionPrompt) -> QuestionPrompt:
        asked = prompt.documents, prompt.question, prompt.answer
        own = self._encoder.text_prompt(*asked)
        return QuestionPrompt(own.ids, own.answer_start, *asked)

    @torch.no_grad()
    def _answers(self, groups: list[list[QuestionPrompt]]) -> list[TaughtAnswer]:
        model = self._model
        packed = pack_branches(groups, model.device)
        none = torch.empty(0, model.hidden_size, dtype=model.dtype, device=model.device)
        with model.evaluating():
            states = answer_states(model, packed, none, self._adapter)
            ids, log_probs = self._most_likely(states)
        prompts = packed_order(groups)
        answers = [prompt.ids[prompt.answer_start :] for prompt in prompts]
        counts = [len(answer) for answer in answers]
        each = zip(prompts, answers, ids.split(counts), log_probs.split(counts), strict=True)
        return [TaughtAnswer(*of_one) for of_one in each]

    def _most_likely(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely tokens of all positions, on the CPU. The head's padding is left out."""
        known = len(self._model.tokenizer.tokenizer)
        rows = max(CHUNK_LOGITS // known, 1)
        parts = [
            most_likely(states_to_logits(self._model.backbone, part)[:, :known], self._top)
            for part in states.split(rows)
        ]
        ids, log_probs = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
        return ids, log_probs


def share_frozen_weights(student: nn.Module, teacher: nn.Module) -> int:
    """Let a teacher use the student's copy of weights that are equal and do not train.

    Weights that are spread over processes or quantized are left as they are.

    Returns:
        Bytes of memory that are free again.
    """
    theirs = dict(teacher.named_parameters())
    freed = 0
    for name, own in student.named_parameters():
        other = theirs.get(name)
        if other is None or own.requires_grad or type(own) is not nn.Parameter:
            continue
        alike = (own.shape, own.dtype, own.device) == (other.shape, other.dtype, other.device)
        if alike and type(other) is nn.Parameter and torch.equal(own, other):
            other.data = own.data
            freed += own.nbytes
    return freed
