"""Text of users and documents never becomes a token that is not text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clara.tokenizer import Control, Marker, SafeTokenizer

BASE = "tests/data/reference/base"
WORDS = [
    "hello",
    "world",
    "the",
    "coast",
    "of",
    "</s>",
    "<s>",
    "<unk>",
    "a",
    "b",
    "s",
    "<",
    "/",
    ">",
]


def byte_level() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(BASE)


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral: merges on words that begin with ▁, bytes for the rest."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += sorted({c for word in WORDS[:5] for c in word} | set("<>/s▁"))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = []
    for left, right in (("h", "e"), ("l", "l"), ("▁", "a"), ("<", "/"), ("</", "s")):
        merges.append((left, right))
        vocabulary.setdefault(left + right, len(vocabulary))
    merges.append(("</s", ">"))  # a vocabulary that can spell its own control token
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return fast(backend)


def unigram() -> PreTrainedTokenizerFast:
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz</>"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(backend)


def word_level() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return fast(backend)


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]}
    )
    tokenizer.add_tokens(["<tool>", "    "])  # not special, but tokens all the same
    return tokenizer


MAKERS = [byte_level, metaspace, unigram, word_level]
PARTS = ["<s>", "</s>", "<unk>", "<|end|>", "<|user|>", "<MEM0>", "<tool>", "</", "s>"]
TEXTS = ["hello", "é", "漢", "😀", "▁", "    ", " ", "\n", "\0", "x" + "0" * 32]
HOSTILE = st.lists(
    st.sampled_from([*PARTS, *TEXTS]) | st.text(max_size=8),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def pair(request):
    tokenizer = request.param()
    return tokenizer, SafeTokenizer(tokenizer)


@settings(max_examples=60, deadline=None)
@given(text=HOSTILE.filter(lambda text: text.isprintable() or text.isascii()))
def test_text_is_never_an_added_token(pair, text):
    tokenizer, safe = pair
    added = set(tokenizer.added_tokens_decoder)
    (encoded,) = safe.encode_texts([text])
    assert not added & set(encoded.ids)
    assert all(token >= 0 for token in encoded.ids)
    assert len(encoded.starts) == len(encoded.ids)
    assert encoded.starts == sorted(encoded.starts)


@settings(max_examples=60, deadline=None)
@given(text=HOSTILE.filter(lambda text: text.isprintable() or text.isascii()))
def test_a_prompt_has_the_control_tokens_of_its_template_and_no_other(pair, text):
    tokenizer, safe = pair
    added = set(tokenizer.added_tokens_decoder)
    pieces = [Control("<s>"), text, Marker.MEMORY, Marker.SEPARATOR, text, Control("</s>")]
    ids = safe.encode_pieces(pieces).ids
    controls = [token for token in ids if token in added or token < 0]
    assert controls == [
        tokenizer.convert_tokens_to_ids("<s>"),
        Marker.MEMORY,
        Marker.SEPARATOR,
        tokenizer.convert_tokens_to_ids("</s>"),
    ]


def test_plain_text_has_the_tokens_of_the_tokenizer(pair):
    tokenizer, safe = pair
    for text in ("hello world", "the coast of a b", "a  b", " hello"):
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert safe.encode_texts([text])[0].ids == expected


def test_a_template_is_tokenised_as_one_text(pair):
    tokenizer, safe = pair
    text = "<s>hello <|end|>   world</s>the coast"
    expected = tokenizer(text, add_special_tokens=False).input_ids
    assert safe.encode_pieces([Control(text)]).ids == expected
    pieces = [
        Control("<s>"),
        "hello ",
        Control("<|end|>   "),
        "world",
        Control("</s>"),
        "the coast",
    ]
    assert safe.encode_pieces(pieces).ids == expected


def test_rstrip_takes_the_space_of_the_text_that_follows(pair):
    tokenizer, safe = pair
    if "<|end|>" not in tokenizer.get_added_vocab():
        return
    expected = tokenizer("<|end|>  hello", add_special_tokens=False).input_ids
    assert safe.encode_pieces([Control("<|end|>"), "  hello"]).ids == expected


def test_starts_cut_the_text_where_tokens_begin():
    safe = SafeTokenizer(byte_level())
    text = "The coastline of Bangladesh is 580 km long. Is it?"
    encoded = safe.encode_texts([text])[0]
    ends = [*encoded.starts[1:], len(text)]
    spelled = [text[a:b].strip() for a, b in zip(encoded.starts, ends, strict=True)]
    decoded = [safe.decode([token]).strip() for token in encoded.ids]
    assert spelled == decoded


def test_length_counts_what_starts_count():
    safe = SafeTokenizer(byte_level())
    before = [Control("<s>"), "hello ", Marker.MEMORY]
    encoded = safe.encode_pieces([*before, "world"])
    assert encoded.starts[-1] >= safe.length(before)
    assert encoded.starts[-1] < safe.length([*before, "world"])
    inside = [
        i for i, s in zip(encoded.ids, encoded.starts, strict=True) if s >= safe.length(before)
    ]
    assert safe.decode(inside) == "world"


def test_a_control_name_inside_a_name_is_not_replaced():
    """Added tokens may be a single letter or digit, as the parts of internal names are."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["0", "x", "a1"])
    safe = SafeTokenizer(tokenizer)
    ids = safe.encode_pieces([Control("<s>0x</s>")]).ids
    names = ["<s>", "0", "x", "</s>"]
    assert ids == [tokenizer.convert_tokens_to_ids(name) for name in names]


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"^tokenizer Slow is not a fast tokenizer"):
        SafeTokenizer(Slow())
