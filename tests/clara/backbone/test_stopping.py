"""Where an answer ends: at which token, at which text, and what is left of it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from clara import Clara, ClaraConfig
from clara.backbone.generation_settings import generation_settings
from clara.backbone.stopping import AnswerReader, StopTexts
from clara.text.prompts import answer_end
from clara.text.tokenizer import SafeTokenizer

from .speaking import saying

BASE = "tests/data/reference/base"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = CHATML.replace("<|im_end|>", " <|im_end|>")
TAGS = CHATML.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "\n</turn>")
TAGS_AND_TOKEN = CHATML.replace("<|im_end|>", "</turn><|im_end|>")
HEADED = (
    "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '\n### user:' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}### assistant: {% endif %}"
)
BLANKS = CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "\n")
OPEN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATES = {
    "ChatML": CHATML,
    "a blank before the token": SPACED,
    "plain text": TAGS,
    "plain text, then a token": TAGS_AND_TOKEN,
    "the head of the next turn": HEADED,
    "white space": BLANKS,
    "nothing": OPEN,
    "no template": None,
}


def edited_tokenizer(template, special=True):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokens = ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens(tokens, special_tokens=special)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A folder with room in the vocabulary for tokens of a template."""
    folder = tmp_path_factory.mktemp("roomy")
    config = LlamaConfig(
        vocab_size=640,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(folder)
    return folder


@pytest.fixture
def model(backbone):
    config = ClaraConfig(compression_rate=16, document_length=64, lora_rank=2, dtype="float32")
    return Clara.from_backbone(backbone, config)


@pytest.fixture
def memory(model):
    return model.compress(["The harbour lies in the north."]).memory


def trained(model, answer):
    """The tokens that training teaches as the answer and its end."""
    (prompt,) = model.memory_prompts(["Where?"], [1], [answer])
    return prompt.ids[prompt.answer_start :]


def filler(model):
    return model.tokenizer.encode_texts([" more"])[0].ids


# What ends an answer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_generation_stops_where_training_ends(model, memory, name, special):
    model.tokenizer = SafeTokenizer(edited_tokenizer(TEMPLATES[name], special))
    ids = trained(model, "north, east")
    assert model.merge_generator()
    ways = {
        "generate": lambda: model.generate(["Where?"], [memory], max_new_tokens=60)[0],
        "stream": lambda: "".join(model.stream("Where?", memory, max_new_tokens=60)),
        "text": lambda: model.answer_from_text(["Where?"], [["Text."]], max_new_tokens=60)[0],
        "answer": lambda: model.answer(["Where?"], ["Text."], max_new_tokens=60)[0].text,
    }
    ways["not merged"] = ways["generate"]
    for way, call in ways.items():
        if way == "not merged":
            model._merged = None
        with saying(model, [*ids, *filler(model)]) as steps:
            assert call().lstrip(" ") == "north, east", way
        assert len(steps) <= len(ids), way


def test_an_answer_that_holds_what_a_blank_closing_turn_writes_is_whole(model, memory):
    model.tokenizer = SafeTokenizer(edited_tokenizer(BLANKS))
    text = "one\n\ntwo\n\nthree"
    with saying(model, [*trained(model, text), *filler(model)]):
        assert model.generate(["Where?"], [memory]) == [text]


def test_a_batch_in_which_answers_end_one_after_the_other(model, memory):
    """Rows that have ended are padded, and what pads is no part of the answer."""
    for name in ("ChatML", "plain text"):
        model.tokenizer = SafeTokenizer(edited_tokenizer(TEMPLATES[name]))
        questions = ["Where?", "What is the name of it?"]
        long, short = (trained(model, text) for text in ("north of the town by the river", "south"))
        steps = []

        def put(module, arguments, logits, rows=(long, short), steps=steps):
            made = torch.full_like(logits, -100.0)
            for row, ids in enumerate(rows):
                made[row, :, ids[min(len(steps), len(ids) - 1)]] = 100.0
            steps.append(1)
            return made

        handle = model.backbone.get_output_embeddings().register_forward_hook(put)
        try:  # the longer question comes first in a batch
            answers = model.generate(questions, [memory, memory], max_new_tokens=60)
        finally:
            handle.remove()
        assert answers == ["south", "north of the town by the river"]
        assert len(steps) <= len(long)


def test_the_stop_set(model):
    model.tokenizer = SafeTokenizer(edited_tokenizer(CHATML))
    end = model.tokenizer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sorted(
        generation_settings(model.backbone, model.tokenizer, None, None).eos_token_id
    ) == [2, end]
    for stored, expected in ((0, [0, 2, end]), ([0, 7], [0, 2, 7, end]), (None, [2, end])):
        model.backbone.generation_config.eos_token_id = stored
        settings = generation_settings(model.backbone, model.tokenizer, None, None)
        assert sorted(settings.eos_token_id) == expected
        assert settings.pad_token_id == (0 if stored is not None else 2)


def test_token_0_is_an_end(model, memory):
    model.backbone.generation_config.eos_token_id = 0
    words = model.tokenizer.encode_texts(["north"])[0].ids
    with saying(model, [*words, 0, *filler(model)]) as steps:
        assert model.generate(["Where?"], [memory]) == ["north"]
    assert len(steps) == len(words) + 1


@pytest.mark.parametrize("name", ["ChatML", "plain text"])
def test_the_users_end_is_the_only_one(model, memory, name):
    model.tokenizer = SafeTokenizer(edited_tokenizer(TEMPLATES[name]))
    ids = trained(model, "north")
    given = GenerationConfig(eos_token_id=ids[0], max_new_tokens=20)
    settings = generation_settings(model.backbone, model.tokenizer, given, None)
    assert settings.eos_token_id == [ids[0]]
    assert settings.stop_strings is None
    for ends in ([], -1):
        never = GenerationConfig(eos_token_id=ends, max_new_tokens=20)
        with saying(model, [*ids, *filler(model)]) as steps:
            text = model.generate(["Where?"], [memory], generation_config=never)[0]
        assert len(steps) == 20
        assert text.startswith("north")
        assert " more" in text


def test_padding_after_an_ordinary_end_is_left_out(model, memory):
    north, more = (model.tokenizer.encode_texts([t])[0].ids[0] for t in ("n", "m"))
    given = GenerationConfig(eos_token_id=north, max_new_tokens=5)
    steps = []

    def put(module, arguments, logits):
        made = torch.full_like(logits, -100.0)
        made[0, :, more] = made[1:, :, north] = 1.0
        steps.append(1)
        return made

    handle = model.backbone.get_output_embeddings().register_forward_hook(put)
    try:
        answers = model.generate(["Where is it?", "Who?"], [memory] * 2, generation_config=given)
    finally:
        handle.remove()
    assert answers == ["mmmmm", "n"]


def test_nothing_ends_an_answer(model, memory):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.eos_token = None
    tokenizer.chat_template = BLANKS
    model.tokenizer = SafeTokenizer(tokenizer)
    model.backbone.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"no stop token: .* pass generation_config="):
        model.generate(["Where?"], [memory])
    given = GenerationConfig(eos_token_id=2, max_new_tokens=2)
    assert len(model.generate(["Where?"], [memory], generation_config=given)) == 1


def test_closing_turns():
    ends = {
        name: answer_end(SafeTokenizer(edited_tokenizer(template)))
        for name, template in TEMPLATES.items()
    }
    token = edited_tokenizer(None).convert_tokens_to_ids("<|im_end|>")
    assert {name: (end.token, end.text, end.blank) for name, end in ends.items()} == {
        "ChatML": (token, "", ""),
        "a blank before the token": (token, "", " "),
        "plain text": (None, "</turn>", "\n"),
        "plain text, then a token": (None, "</turn>", ""),
        "the head of the next turn": (None, "### user:", "\n"),
        "white space": (2, "", ""),
        "nothing": (2, "", ""),
        "no template": (2, "", ""),
    }


# Stop texts of the user


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ("th, ea", "nor"),
        (["zz", ", east"], "north"),
        (["east", "or"], "n"),
        ("north, east and so on", None),
        ("<|im_end|>", "north, east"),
        (" south", "north, east"),
    ],
)
def test_stop_strings(model, memory, stops, expected, beams):
    model.tokenizer = SafeTokenizer(edited_tokenizer(CHATML))
    encode = model.tokenizer.encode_texts
    end = model.tokenizer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*encode(["north, east"])[0].ids, end, *encode([" south and far"])[0].ids]
    given = GenerationConfig(
        stop_strings=stops, eos_token_id=2, num_beams=beams, max_new_tokens=len(ids)
    )
    whole = "north, east south and far"
    with saying(model, ids):
        assert model.generate(["Where?"], [memory], generation_config=given) == [expected or whole]
    if beams == 1:
        with saying(model, ids) as steps:
            pieces = list(model.stream("Where?", memory, generation_config=given))
        assert "".join(pieces) == (expected or whole)
        assert len(steps) < len(ids) or expected is None
    assert given.stop_strings == stops


@pytest.mark.parametrize("stops", ["", [""], ["a", ""], [3], 3, True])
def test_stop_strings_that_are_none(model, memory, stops):
    given = GenerationConfig(stop_strings=stops)
    with pytest.raises(ValueError, match="stop_strings must be a text or a list of texts"):
        model.generate(["Where?"], [memory], generation_config=given)


# The text of tokens


def test_what_is_given_early_stays():
    tokenizer = SafeTokenizer(edited_tokenizer(CHATML))
    text = "Über 日本語 and\n\n  the   river 😀 flows</turn> never"
    ids = tokenizer.encode_texts([text])[0].ids
    for stops in ((), ("</turn>",), ("river 😁", "the river", "flows</turn> never!"), ("語 a",)):
        reader = AnswerReader(tokenizer, ends=(2,), left_out=(2,), stops=stops, blank="\n")
        final = reader.text(ids)
        begun = [reader.begun(ids[:n]) for n in range(len(ids) + 1)]
        assert all(final.startswith(part) for part in begun)
        assert len(set(begun)) > 3
        assert reader.text([*ids, 2, 5, 2]) == final


def test_the_length_of_an_answer():
    tokenizer = SafeTokenizer(edited_tokenizer(CHATML))
    ids = tokenizer.encode_texts(["north</turn> and more"])[0].ids
    stop = next(n for n in range(len(ids)) if "</turn>" in tokenizer.decode(ids[:n]))
    assert AnswerReader(tokenizer, ends=(2,)).length([*ids, 2, 2]) == len(ids) + 1
    assert AnswerReader(tokenizer, ends=()).length(ids) == len(ids)
    assert AnswerReader(tokenizer, ends=(2,), stops=("</turn>",)).length([*ids, 2]) == stop


def test_a_stop_text_is_looked_for_in_each_row():
    tokenizer = SafeTokenizer(edited_tokenizer(CHATML))
    rows = [tokenizer.encode_texts([text])[0].ids for text in ("ab stop", "stop it", "sto p")]
    width = max(map(len, rows))
    padded = torch.tensor([[5] * (width - len(row)) + row for row in rows])
    criterion = StopTexts(AnswerReader(tokenizer, ends=(), stops=("stop",)))
    assert criterion(padded, torch.empty(0)).tolist() == [True, True, False]
    assert (
        StopTexts(AnswerReader(tokenizer, ends=(), stops=("stop",)), width)(
            padded, torch.empty(0)
        ).tolist()
        == [False] * 3
    )
