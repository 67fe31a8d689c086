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
from clara.training.teacher_cache import TeacherCache

CACHE = "teacher"
"""Folder of the teacher's probabilities in a run's folder."""


class Distillation:
    """A teacher's probabilities for the answers of batches.

    The teacher is loaded when the first answer is missing on disk, and stays loaded.

    Args:
        student: the model that learns from it.
        top: how many of the most likely tokens have a probability of their own.
    """

    def __init__(
        self, place: TeacherFolder, cache: TeacherCache, student: Clara, *, top: int
    ) -> None:
        self._place, self._cache, self._student, self._top = place, cache, student, top
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
        missing = [prompt for key, prompt in asked.items() if self._cache.get(key) is None]
        if not missing:
            return
        if self._teacher is None:
            self._teacher = Teacher(self._place, self._student, self._top)
        for answers in self._teacher.read(missing):
            for answer in answers:
                values = answer.ids.numpy(), answer.log_probs.numpy()
                self._cache.add(_key(answer.prompt), answer.tokens, *values)


def distillation_of(
    model: Clara, arguments: ClaraTrainingArguments, data: Sequence[Any]
) -> Distillation | None:
    """The distillation that the settings ask for; None without a teacher or with a weight of 0.

    Args:
        data: the training data, and the evaluation data or None.

    Raises:
        SettingsError: the teacher does not fit the model, or the cache is of another teacher,
            other data or another prompt.
    """
    place, top = teacher_of(arguments), arguments.distillation_top
    if place is None:
        return None
    check_tokenizers(place.given, place.tokenizer, model.tokenizer)
    known = len(place.tokenizer.tokenizer)
    if top >= known:
        raise SettingsError(
            f"distillation_top must be below the vocabulary's {known} tokens, got {top}"
        )
    path = arguments.teacher_cache or os.path.join(arguments.output_dir, CACHE)
    prompt = place.config.prompt
    made_of = {
        "train_data": {"examples": len(data[0]), "digest": getattr(data[0], "digest", None)},
        "teacher": place.digest,
        "prompt": {"system": prompt.system, "user": prompt.user},
    }
    cache = TeacherCache(path, made_of, top=top)
    if arguments.process_index == 0:
        already = f", where those of {len(cache)} answers are already" if len(cache) else ""
        say(f"the teacher's probabilities are kept in {path}{already}")
    return Distillation(place, cache, model, top=top)


def _key(prompt: QuestionPrompt) -> bytes:
    """Identifies an answer, with its question and documents."""
    asked = json.dumps([prompt.documents, prompt.question, prompt.answer])
    return hashlib.blake2b(asked.encode(), digest_size=16).digest()
