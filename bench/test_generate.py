"""How fast answers are generated once documents are chosen: from memory, and from their text."""

from __future__ import annotations

from functools import partial

from bench.baselines.text_rag import TextRag
from bench.questions import QUESTION, full_documents
from bench.turns import Turns
from bench.ways import MEMORY, MERGED, TEXT, exactly, merged
from bench.work import Work

DOCUMENTS = 5
LENGTH = {"smoke": 48, "small": 256, "full": 256}
NEW_TOKENS = {"smoke": 3, "small": 32, "full": 64}
DIFFERS = "its answer is not what it should be"
ROUNDS = {"smoke": 1, "small": 2, "full": 10}


def test_tokens(benchmark, models, size, device, environment, recorder, summary, rate):
    """The first token, which takes reading the prompt, and the further ones."""
    model = models(rate)
    twin, text = merged(model), TextRag(model)
    tokens = NEW_TOKENS[size.name]
    texts = full_documents(DOCUMENTS, model.tokenizer.tokenizer, LENGTH[size.name])
    memory = model.compress(texts, overflow="truncate").memory[None]

    def generate(chosen, new_tokens: int) -> str:
        (answer,) = chosen.generate([QUESTION], memory, generation_config=exactly(new_tokens))
        return answer

    ways = {
        MEMORY: partial(generate, model),
        MERGED: partial(generate, twin),
        TEXT: partial(text.answer, QUESTION, texts),
    }
    work = Work(model)
    backbones = [model.backbone, text.backbone, *([twin._merged.backbone] if twin._merged else [])]
    calls = {
        (name, n): work.counted(f"{name} {n}", partial(way, n), *backbones)
        for name, way in ways.items()
        for n in (1, tokens)
    }
    answers = {key: call() for key, call in calls.items()}
    (bare,) = model.answer_from_text([QUESTION], [texts], max_new_tokens=tokens)
    right = {MERGED: answers[MEMORY, tokens] == answers[MERGED, tokens]}
    # The bare backbone of ours may stop earlier.
    right[TEXT] = bool(bare.strip()) and answers[TEXT, tokens].strip().startswith(bare.strip())
    wrong = {name for name, is_right in right.items() if not is_right}
    turns = Turns({" ".join(map(str, key)): call for key, call in calls.items()}, device)
    turns.benchmark(benchmark, f"{MEMORY} {tokens}", ROUNDS[size.name])
    benchmark.extra_info.update(environment, seconds=turns.seconds, rate=rate)
    prompts = dict.fromkeys((MEMORY, MERGED), model.prompt_tokens(QUESTION, DOCUMENTS))
    prompts[TEXT] = len(text.prompt(QUESTION, texts))
    for name in ways:
        first, whole = (turns.seconds[f"{name} {n}"] for n in (1, tokens))
        if name in wrong:
            for case in ("first token", "further tokens"):
                recorder.withhold("generate", case, name, DIFFERS, rate=rate)
            summary.append(f"{rate:4}x {name}: withheld, {DIFFERS}")
            continue
        further = [b - a for a, b in zip(first, whole, strict=True)]
        found = {"first token": (first, 1), "further tokens": (further, tokens - 1)}
        for case, (seconds, count) in found.items():
            if min(seconds) <= 0:
                reason = "no longer than the first token, within noise"
                recorder.withhold("generate", case, name, reason, rate=rate)
                continue
            amounts = work.amounts(f"{name} 1")
            if case == "further tokens":
                all_of = work.amounts(f"{name} {tokens}")
                amounts = {what: all_of[what] - amount for what, amount in amounts.items()}
            amounts |= {"prompt_tokens": prompts[name], "tokens": count}
            recorder.seconds("generate", case, {name: seconds}, {"rate": rate}, amounts)
        beyond = turns.median(f"{name} {tokens}") - turns.median(f"{name} 1")
        speed = f"{(tokens - 1) / beyond:.1f} tokens/s" if beyond > 0 else "others within noise"
        summary.append(
            f"{rate:4}x {name}: first token {turns.median(f'{name} 1'):.3f} s from "
            f"{prompts[name]} positions, then {speed}"
        )
