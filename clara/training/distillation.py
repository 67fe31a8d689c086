"""What a teacher says about the answers of a batch, computed once and kept on disk.

A run draws only a part of the questions of its data, and a teacher takes as long to read a question
as the generator does. So an answer's probabilities are computed when it is drawn for the first
time, and not before training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from clara.model.clara import Clara
from clara.terminal.printing import say
from clara.text.prompts import Prompt
from clara.training.arguments import ClaraTrainingArguments
from clara.training.batches import Taught
from clara.training.questions import QuestionPrompt
from clara.training.settings import SettingsError
from clara.training.teacher import Teacher, TeacherFolder, check_tokenizers, teacher_of
from clara.training.teacher_cache import TeacherCache, check_made_of

CACHE = "teacher"
"""Folder of the teacher's probabilities in a run's folder."""


class Distillation:
    """A teacher's probabilities for the answers of batches.

    The teacher is loaded when the first answer is missing on disk, and stays loaded.

    Args:
        student: the model that learns from it.
    """

    def __init__(self, place: TeacherFolder, cache: TeacherCache, student: Clara) -> None:
        self._place, self._cache, self._student = place, cache, student
        self._teacher: Teacher | None = None

    def taught(self, prompts: Sequence[Prompt], events: Counter[str]) -> Taught | None:
        """The probabilities at the answers' tokens.

        Args:
            prompts: with answers, in the order of the batch; those that are no `QuestionPrompt`
                have no teacher.
            events: answers that the teacher cannot read, or reads as other tokens, are counted
                there.

        Returns:
            None where no answer has a teacher.
        """
        self._add_missing([p for p in prompts if isinstance(p, QuestionPrompt)])
        rows, ids, log_probs = [], [], []
        at = 0
        for prompt in prompts:
            own = prompt.ids[prompt.answer_start :]
            if isinstance(prompt, QuestionPrompt):
                kept = self._cache.get(_key(prompt))
                if kept is None or kept.tokens.tolist() != own:
                    events["answer without a teacher"] += 1
                else:
                    rows.append(torch.arange(at, at + len(own)))
                    ids.append(torch.from_numpy(kept.ids.astype("int64")))
                    log_probs.append(torch.from_numpy(kept.log_probs.astype("float32")))
            at += len(own)
        if not rows:
            return None
        # They were rounded: their exponentials are to add up to 1 exactly.
        return Taught(torch.cat(rows), torch.cat(ids), torch.cat(log_probs).log_softmax(1))

    def _add_missing(self, prompts: Sequence[QuestionPrompt]) -> None:
        asked = {_key(prompt): prompt for prompt in prompts}
        missing = {key: each for key, each in asked.items() if self._cache.get(key) is None}
        if not missing:
            return
        if self._teacher is None:
            self._teacher = Teacher(self._place, self._student, self._cache.top)
        unreadable = set(missing)
        for answers in self._teacher.read(list(missing.values())):
            for answer in answers:
                key = _key(answer.prompt)
                self._cache.add(key, answer.tokens, answer.ids.numpy(), answer.log_probs.numpy())
                unreadable.discard(key)
        for key in unreadable:
            self._cache.add_unreadable(key)


def distillation_of(
    model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]
) -> Distillation | None:
    """The distillation that the settings ask for; None without a teacher or with a weight of 0.

    Args:
        data: the training data, and the evaluation data or None.

    Raises:
        SettingsError: the teacher does not fit the model, or see `check_cache`.
    """
    place = teacher_of(arguments)
    if place is None:
        return None
    check_tokenizers(place.given, place.tokenizer, model.tokenizer)
    path = _cache_path(arguments)
    cache = TeacherCache(path, _made_of(place, arguments, data[0]))
    if arguments.process_index == 0:
        already = f", where those of {len(cache)} answers are already" if len(cache) else ""
        say(f"the teacher's probabilities are kept in {path}{already}")
    return Distillation(place, cache, model)


def check_cache(place: TeacherFolder, arguments: ClaraTrainingArguments, train: Any) -> None:
    """Refuse, before a model is loaded, what `distillation_of` would refuse of the cache.

    Raises:
        SettingsError: the cache is of another teacher, other data or another prompt, or more
            tokens are to be kept than there are.
    """
    top, known = arguments.distillation_top, len(place.tokenizer.tokenizer)
    assert top is not None, "the arguments replace None by the default"
    if top >= known:
        raise SettingsError(
            f"distillation_top must be below the vocabulary's {known} tokens, got {top}"
        )
    check_made_of(_cache_path(arguments), _made_of(place, arguments, train))


def _cache_path(arguments: ClaraTrainingArguments) -> str:
    return arguments.teacher_cache or os.path.join(arguments.output_dir, CACHE)


def _made_of(place: TeacherFolder, arguments: ClaraTrainingArguments, train: Any) -> dict[str, Any]:
    """What the probabilities depend on."""
    prompt = place.config.prompt
    return {
        "train_data": {"examples": len(train), "digest": getattr(train, "digest", None)},
        "teacher": place.digest,
        "prompt": {"system": prompt.system, "user": prompt.user},
        "distillation_top": arguments.distillation_top,
    }


def _key(prompt: QuestionPrompt) -> bytes:
    """Identifies an answer, with its question and documents."""
    asked = json.dumps([prompt.documents, prompt.question, prompt.answer])
    return hashlib.blake2b(asked.encode(), digest_size=16).digest()
