"""Text of users and documents never becomes a token that is not text."""

from __future__ import annotations

import time
from operator import itemgetter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clara.text.tokenizer import Control, Marker, SafeTokenizer

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


def test_a_word_of_the_vocabulary_is_no_control_token():
    """Byte pairs that skip their merges, as Llama 3's, look whole words up."""
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "</s>", "<unk>", *"a</s>"])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = fast(backend)
    assert backend.model.tokenize("</s>")[0].id == tokenizer.eos_token_id
    (encoded,) = SafeTokenizer(tokenizer).encode_texts(["a </s> é a"])
    assert [tokenizer.convert_ids_to_tokens(i) for i in encoded.ids] == ["a", *"</s>", "a"]
    assert encoded.starts == [0, 2, 3, 4, 5, 9]


def test_blanks_are_text_even_where_they_are_added_tokens():
    """Gemma lists the line feed and runs of blanks among its added tokens."""
    pieces = ["<unk>", "<s>", "</s>", "a", "b", "\n", "▁", "▁▁"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("▁", "▁")]))
    backend.normalizer = normalizers.Replace(" ", "▁")
    tokenizer = fast(backend)
    tokenizer.add_tokens([AddedToken("\n", normalized=False), AddedToken("▁▁", normalized=False)])
    assert {5, 7} <= set(tokenizer.added_tokens_decoder)
    safe = SafeTokenizer(tokenizer)
    assert safe.encode_texts(["a\nb  a"])[0].ids == [3, 5, 4, 7, 3]
    assert safe.encode_pieces([Control("<s>\n"), "a\nb"]).ids == [1, 5, 3, 5, 4]


def test_a_vocabulary_with_gaps():
    """Ids that the library gives to new tokens may be those of words."""
    words = {"a": 0, "b": 3, "c": 5, "d": 6, "e": 8, "f": 9, "g": 40, "<unk>": 7}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    safe = SafeTokenizer(tokenizer)
    assert safe.encode_texts(["a b c d e f g"])[0].ids == [0, 3, 5, 6, 8, 9, 40]
    pieces = ["a b", Control("<unk>"), "e", Marker.MEMORY, "f", Marker.ENCODE, Marker.SEPARATOR]
    assert safe.encode_pieces(pieces).ids == [0, 3, 7, 8, -1, 9, -3, -2]


def test_thousands_of_added_tokens_take_no_more_time_each_than_hundreds():
    def seconds(count):
        tokenizer = byte_level()
        tokenizer.add_tokens([f"<unused{i}>" for i in range(count)])
        begin = time.process_time()
        safe = SafeTokenizer(tokenizer)
        return time.process_time() - begin, safe, tokenizer

    few, many = (min((seconds(n) for _ in range(3)), key=itemgetter(0)) for n in (400, 4000))
    assert many[0] < 40 * few[0]
    safe, tokenizer = many[1:]
    last = tokenizer.convert_tokens_to_ids("<unused3999>")
    ids = safe.encode_pieces([Control("<unused3999>"), "<unused3999>"]).ids
    assert ids[0] == last
    assert not set(ids[1:]) & set(tokenizer.added_tokens_decoder)


def test_a_long_text_has_the_tokens_of_the_tokenizer():
    tokenizer = byte_level()
    text = "The coastline of Bangladesh is 580 km long. 😀\0 " * 4000
    (encoded,) = SafeTokenizer(tokenizer).encode_texts([text])
    assert encoded.ids == tokenizer(text, add_special_tokens=False).input_ids
    assert encoded.starts[-1] < len(text)


def test_every_control_token_is_spelled_out_in_a_text(pair):
    tokenizer, safe = pair
    names = list(tokenizer.added_tokens_decoder.items())
    together = "".join(str(token) for _, token in names)
    assert not set(safe.encode_texts([together])[0].ids) & {i for i, _ in names}
    for i, token in names:
        if str(token).strip():
            assert not set(safe.encode_texts([str(token)])[0].ids) & {i}
            assert safe.encode_pieces([Control(str(token))]).ids == [i]


def test_internal_names_are_new_in_each_tokenizer():
    one, other = SafeTokenizer(byte_level()), SafeTokenizer(byte_level())
    leaked = "".join(one._names.values())
    assert min(other.encode_texts([leaked])[0].ids) >= 0
    assert min(other.encode_pieces([leaked]).ids) >= 0


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("ab\ud83d", ValueError, r"texts\[1\] holds half a surrogate pair, .ud83d, at character 2"),
        (None, TypeError, r"texts\[1\] must be a string, got NoneType"),
        (b"text", TypeError, r"texts\[1\] must be a string, got bytes"),
    ],
)
def test_what_is_no_text_is_named(text, error, message):
    safe = SafeTokenizer(byte_level())
    with pytest.raises(error, match=message):
        safe.encode_texts(["fine", text])


def test_half_a_pair_in_a_prompt_is_named():
    with pytest.raises(ValueError, match="the prompt holds half a surrogate pair"):
        SafeTokenizer(byte_level()).encode_pieces([Control("<s>"), "\udc00"])


def test_a_tokenizer_without_an_end_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0}))
    safe = SafeTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert safe.bos_id is None
    with pytest.raises(ValueError, match="has no end-of-sequence token"):
        _ = safe.eos_id
