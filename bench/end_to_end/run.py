"""Everything that is measured of one backbone: answers and compression."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import clara
from bench.backbones import QUESTIONS, RANDOM, Backbone, load
from bench.baselines.reference_way import ReferenceWay
from bench.device import peak_allocated, release
from bench.lengths import LONGEST, document_lengths
from bench.printing import first_line
from bench.turns import Turns
from bench.ways import MEMORY, MERGED, ONLINE, REFERENCE, TEXT
from clara.reports.results import REFERENCE_WAY, Measurement, Parameter, Promise

from .recording import Recording
from .ways import (
    EXACT_LAYERS,
    LOGIT_TOLERANCES,
    MEMORY_TOLERANCES,
    Asked,
    BatchWays,
    distance,
    texts_of,
)

RATES, COMPARED_RATE = (4, 16, 128), 16
FIRST, WHOLE, PEAK = "time to first token", "whole answer", "peak memory"
THROUGHPUT, FULL = "throughput", "throughput of full documents"
OURS = "ours"

# What is promised on an H100 of bfloat16 with Mistral-7B's shape at 16x: times as fast.
PROMISED_BACKBONE = RANDOM + "mistral-7b"
FASTER_THAN_TEXT, FASTER_THAN_REFERENCE = 5.0, 2.5

ASKED = Asked(QUESTIONS)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        limit: tokens of a document at most.
        documents: that are compressed.
        rounds: at least and at most.
    """

    asked: Asked = ASKED
    limit: int = LONGEST
    new_tokens: int = 32
    documents: int = 256
    rounds: tuple[int, int] = (3, 9)


TINY = Size(
    asked=Asked(QUESTIONS[:3], top_k=2, corpus=30, real=6, length=24),
    limit=128,
    new_tokens=2,
    documents=6,
    rounds=(1, 1),
)


@dataclass
class Run:
    """Everything of one backbone.

    Attributes:
        exact: how far ways are from what they have to be, in float32.
    """

    device: torch.device
    recorder: Recording
    size: Size
    exact: dict[str, float] = field(default_factory=dict)

    def check_exactly(self, name: str) -> bool:
        """Compare the first logits through a few layers in float32, where rounding hides nothing.

        On CPU all is float32 anyway.
        """
        try:
            backbone = load(name, self.device, dtype=torch.float32, layers=EXACT_LAYERS)
            model = self.model(backbone, COMPARED_RATE)
            self.exact = BatchWays(backbone, model, self.size.asked).differences()
        except Exception as error:  # bfloat16 may work
            print(f"{name} in float32: {first_line(error)}", flush=True)
            return False
        finally:
            backbone = model = None  # type: ignore[assignment]
            release(self.device)
        print(f"{name} in float32: the first logits differ by {max(self.exact.values()):.1e}")
        return True

    def all(self, backbone: Backbone, seconds: float) -> bool:
        """Measure for about so many seconds; whether nothing failed."""
        quantized = getattr(backbone.model, "is_quantized", False)
        stages: list[tuple[float, str, Callable[[float], None]]] = [
            (1, f"compression at {COMPARED_RATE}x", partial(self.compression, backbone)),
            (4, f"answers at {COMPARED_RATE}x", partial(self.answers, backbone, COMPARED_RATE)),
        ]
        if not quantized:
            for rate in (rate for rate in RATES if rate != COMPARED_RATE):
                stages.append((3, f"answers at {rate}x", partial(self.answers, backbone, rate)))
            stages.append((0.5, "full documents", partial(self.compression, backbone, full=True)))
            stages.append((0.5, "compression", partial(self.own_compression, backbone)))
        end, passed = time.monotonic() + seconds, True
        for number, (weight, name, stage) in enumerate(stages):
            left = end - time.monotonic()
            if left <= 0:
                print(f"{backbone.name}, {name}: not run, out of time", flush=True)
                passed = False
                continue
            try:
                stage(left * weight / sum(each[0] for each in stages[number:]))
            except Exception as error:  # of one stage: the others may be possible
                print(f"{backbone.name}, {name}: {first_line(error)}", flush=True)
                passed = False
            release(self.device)
        return passed

    def answers(self, backbone: Backbone, rate: int, seconds: float) -> None:
        """Time to the first token, and to the last, of a batch of questions in all ways."""
        begin, size = time.monotonic(), self.size
        asked = size.asked
        where: dict[str, Parameter] = {
            "rate": rate,
            "k": asked.top_k,
            "documents": asked.corpus,
            "batch": len(asked.questions),
            "backbone": backbone.name,
        }
        ways = BatchWays(backbone, self.model(backbone, rate), asked)
        apart = ways.differences()
        reasons = {
            name: f"the first logits differ by {each:.1e}, more than {tolerance:g}"
            for found, tolerance in (
                (apart, LOGIT_TOLERANCES[ways.model.dtype]),
                (self.exact, LOGIT_TOLERANCES[torch.float32]),
            )
            for name, each in found.items()
            if not each <= tolerance
        }
        if ways.merged is None:
            reasons[MERGED] = "quantized weights cannot be merged"
        for name, reason in reasons.items():
            for case in (FIRST, WHOLE):
                self.recorder.withhold("question", case, name, reason, **where)
        names = [n for n in (MEMORY, MERGED, ONLINE, TEXT, REFERENCE) if n not in reasons]
        if self.device.type == "cuda":
            peaks = self.peaks({name: ways.calls(size.new_tokens)[name] for name in names})
            self.recorder.memory("question", PEAK, peaks, **where)
        prompts = ways.prompt_tokens()
        left = seconds - (time.monotonic() - begin)
        for case, tokens, share in ((FIRST, 1, 0.25), (WHOLE, size.new_tokens, 0.75)):
            calls = {name: ways.calls(tokens)[name] for name in names}
            fewest = size.rounds[0] - (case == WHOLE and rate != COMPARED_RATE)
            turns = Turns(calls, self.device).run_for(share * left, fewest, size.rounds[1])
            of_each = {name: {"prompt_tokens": prompts[name]} for name in names}
            for name in names:
                if name in apart:
                    of_each[name]["difference"] = apart[name]
            amounts = {"questions": len(ways.questions), "new_tokens": tokens * len(ways.questions)}
            self.recorder.turns("question", case, turns, where, amounts, of_each)
            if case == FIRST and rate == COMPARED_RATE and TEXT in names:
                for name in (each for each in (MEMORY, MERGED) if each in names):
                    what = f"{rate}x, {case} from {name}: times as fast as from text"
                    self.promise(backbone, what, turns.ratio(TEXT, name), FASTER_THAN_TEXT)

    def compression(self, backbone: Backbone, seconds: float, full: bool = False) -> None:
        """Documents of the published lengths, or of the limit, in our way and the reference's."""
        texts = self.texts(backbone, full)
        model = self.model(backbone, COMPARED_RATE)
        reference = ReferenceWay(model, backbone=backbone.plain())
        case = FULL if full else THROUGHPUT
        where: dict[str, Parameter] = {"rate": COMPARED_RATE, "backbone": backbone.name}
        calls: dict[str, Callable[[], Any]] = {
            OURS: partial(model.compress, texts),
            REFERENCE_WAY: partial(reference.compress, texts),
        }
        memory = {name: call() for name, call in calls.items()}
        apart = distance(memory.pop(OURS).memory, memory.pop(REFERENCE_WAY))
        tolerance = MEMORY_TOLERANCES[model.dtype]
        if not apart <= tolerance:
            reason = f"memory differs by {apart:.1e}, more than {tolerance:g}"
            self.recorder.withhold("compress", case, REFERENCE_WAY, reason, **where)
            del calls[REFERENCE_WAY]
        elif not full and self.device.type == "cuda":
            self.recorder.memory("compress", PEAK, self.peaks(calls), **where)
        turns = Turns(calls, self.device).run_for(seconds, *self.size.rounds)
        of_each = {REFERENCE_WAY: {"difference": apart}}
        self.recorder.turns("compress", case, turns, where, amounts_of(model, texts), of_each)
        if not full and REFERENCE_WAY in turns:
            what = f"{COMPARED_RATE}x, documents/s: times the reference way's"
            ratio = turns.ratio(REFERENCE_WAY, OURS)
            self.promise(backbone, what, ratio, FASTER_THAN_REFERENCE)

    def own_compression(self, backbone: Backbone, seconds: float) -> None:
        """Ours at the other rates."""
        texts = self.texts(backbone, full=False)
        for rate in (rate for rate in RATES if rate != COMPARED_RATE):
            model = self.model(backbone, rate)
            call = partial(model.compress, texts)
            call()
            each = seconds / (len(RATES) - 1)
            turns = Turns({OURS: call}, self.device).run_for(each, *self.size.rounds)
            where = {"rate": rate, "backbone": backbone.name}
            amounts = amounts_of(model, texts)
            self.recorder.turns("compress", THROUGHPUT, turns, where, amounts)
            del model, call, turns
            release(self.device)

    def peaks(self, calls: Mapping[str, Callable[[], Any]]) -> dict[str, int]:
        """Bytes at the peak of each call on a GPU."""
        found = {name: peak_allocated(call, self.device) for name, call in calls.items()}
        return {name: peak for name, peak in found.items() if peak is not None}

    def texts(self, backbone: Backbone, full: bool) -> list[str]:
        count, limit = self.size.documents, self.size.limit
        lengths = [limit] * count if full else [min(n, limit) for n in document_lengths(count)]
        return texts_of(backbone, lengths)

    def model(self, backbone: Backbone, rate: int) -> clara.Clara:
        return backbone.clara(rate, document_length=self.size.limit)

    def promise(self, backbone: Backbone, what: str, measured: float, at_least: float) -> None:
        """Judged where it was given: on a GPU of the H100's kind."""
        cuda = self.device.type == "cuda"
        hopper = cuda and torch.cuda.get_device_capability(self.device) == (9, 0)
        if hopper and backbone.name == PROMISED_BACKBONE:
            promise = Promise.judged(f"{backbone.name} at {what}", measured, at_least=at_least)
            self.recorder.promise(promise)

    def withhold_nf4(self, backbone: str, reason: str) -> None:
        where: dict[str, Parameter] = {"rate": COMPARED_RATE, "backbone": f"{backbone}, nf4"}
        measured = {each.key for each in self.recorder.results.measurements}
        for suite, case, name in (
            ("compress", THROUGHPUT, OURS),
            ("question", FIRST, MEMORY),
            ("question", WHOLE, MEMORY),
        ):
            found = Measurement(suite, case, name, dict(where), withheld=reason)
            if found.key not in measured:
                self.recorder.add(found)


def amounts_of(model: clara.Clara, texts: Sequence[str]) -> dict[str, float]:
    tokens = sum(len(each.ids) for each in model.tokenizer.encode_texts(list(texts)))
    return {"documents": len(texts), "tokens": tokens}
