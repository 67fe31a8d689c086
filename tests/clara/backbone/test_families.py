"""Each family of backbones against transformers and PEFT, one document or question at a time."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from clara import Clara, ClaraConfig
from clara.text.packing import compressor_input, pack
from clara.text.passages import as_documents, prepare_passages
from clara.text.tokenizer import Marker

from ..random_adapters import draw_adapters

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")
CONFIG = ClaraConfig(
    compression_rate=16, document_length=64, lora_rank=4, lora_alpha=8, dtype="float32"
)
TEXT = "the river runs north of a small town and people trade salt for grain every spring "
# 256 rows and more take another path through the LoRA layers than one document alone.
TEXTS = [(2 * TEXT)[5 * i : 16 + 14 * i].strip() for i in range(12)]
QUESTIONS = ["Where?", "What do people trade for grain every spring?", "Who runs north?"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tiny_backbone):
    model = Clara.from_backbone(tiny_backbone(request.param), CONFIG)
    return draw_adapters(model, seed=1)


@pytest.fixture(scope="module")
def plain(model, tmp_path_factory):
    """The same weights in transformers and PEFT alone: a function from adapter to model."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    loaded = {}

    def with_adapter(name):
        if name not in loaded:
            backbone = AutoModelForCausalLM.from_pretrained(
                model.config.backbone, dtype=torch.float32, attn_implementation="sdpa"
            )
            loaded[name] = PeftModel.from_pretrained(backbone, folder / name).eval()
        return loaded[name].base_model.model

    return with_adapter


@torch.no_grad()
def plain_memory(model, plain, text):
    """Memory `[m, H]` of one text, no packing and nothing else of ours."""
    own = model.memory_tokens
    tokenizer = AutoTokenizer.from_pretrained(model.config.backbone)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    embedded = plain.get_input_embeddings()(torch.tensor(ids))
    sequence = torch.cat([own.encode, embedded, own.memory])
    hidden = plain.base_model(inputs_embeds=sequence[None], use_cache=False).last_hidden_state
    return hidden[0, -len(own.memory) :]


@torch.no_grad()
def plain_answer(model, plain, question, memory, count):
    """Greedy tokens by full forwards, one question at a time, no cache and no padding."""
    (prompt,) = model.memory_prompts([question], [len(memory)])
    ids = torch.tensor(prompt.ids)
    sequence = plain.get_input_embeddings()(ids.clamp_min(0))
    sequence[ids == Marker.MEMORY] = memory.flatten(0, 1)
    sequence[ids == Marker.SEPARATOR] = model.memory_tokens.separator
    tokens = []
    for _ in range(count):
        best = plain(inputs_embeds=sequence[None], use_cache=False).logits[0, -1].argmax()
        tokens.append(best.item())
        if tokens[-1] == model.tokenizer.eos_id:
            break
        sequence = torch.cat([sequence, plain.get_input_embeddings()(best[None])])
    return model.tokenizer.decode(tokens)


def test_packed_documents_equal_each_alone(model, plain):
    compressor = plain("compressor")
    alone = torch.stack([plain_memory(model, compressor, t) for t in TEXTS])
    memory = model.compress(TEXTS, batch_tokens=10_000).memory
    torch.testing.assert_close(memory, alone, rtol=1e-5, atol=1e-5)


def test_questions_equal_each_alone(model, plain):
    reasoner = plain("query_reasoner")
    alone = torch.stack([plain_memory(model, reasoner, q) for q in QUESTIONS])
    torch.testing.assert_close(model.encode_queries(QUESTIONS), alone, rtol=1e-5, atol=1e-5)


def test_adapters_make_a_difference(model):
    # Otherwise the comparisons above would say nothing about which adapter is active.
    documents = model.compress(QUESTIONS).memory
    questions = model.encode_queries(QUESTIONS)
    assert (documents - questions).abs().max() > 0.1


def test_batch_tokens_do_not_matter(model):
    one_by_one = model.compress(TEXTS, batch_tokens=1)
    together = model.compress(TEXTS, batch_tokens=10_000)
    torch.testing.assert_close(one_by_one.memory, together.memory, rtol=1e-5, atol=1e-5)
    assert one_by_one.ids == together.ids
    assert one_by_one.token_counts == together.token_counts


def test_all_rows_and_memory_rows_agree(model):
    passages = prepare_passages(model.tokenizer, as_documents(TEXTS), limit=64, overflow="error")
    tokens = [compressor_input(p.tokens, bos=1, eos=2, n_memory=4) for p in passages]
    (batch,) = pack(tokens, batch_tokens=10_000, device=model.device)
    with torch.no_grad():
        every = model.encode(batch, "compressor", memory_only=False)
        only = model.encode(batch, "compressor", memory_only=True)
    rows = batch.memory_rows
    torch.testing.assert_close(only[rows], every[rows], rtol=1e-5, atol=1e-5)


def test_answers_equal_a_loop_over_full_forwards(model, plain):
    memory = model.compress(TEXTS).memory
    each = [memory[:3], memory[3:4], memory[:0]]
    expected = [
        plain_answer(model, plain("generator"), question, part, 12)
        for question, part in zip(QUESTIONS, each, strict=True)
    ]
    assert len(set(expected)) == 3
    alone = [
        model.generate([question], [part], max_new_tokens=12)[0]
        for question, part in zip(QUESTIONS, each, strict=True)
    ]
    assert alone == expected
    # Prompts of three lengths: two of them are padded on the left.
    assert model.generate(QUESTIONS, each, max_new_tokens=12) == expected


def test_merged_generator_writes_the_same(model):
    memory = model.compress(TEXTS).memory.unflatten(0, (3, 4))
    before = model.generate(QUESTIONS, memory, max_new_tokens=12)
    assert model.merge_generator()
    try:
        assert model.generate(QUESTIONS, memory, max_new_tokens=12) == before
    finally:
        model._merged = None


def test_loss_equals_one_question_at_a_time(model, plain):
    memory = model.compress(TEXTS).memory
    each = [memory[:3], memory[3:4], memory[4:9]]
    answers = ["salt", "a longer answer about grain", "people"]
    generator = plain("generator")
    total, count = 0.0, 0
    for question, part, answer in zip(QUESTIONS, each, answers, strict=True):
        (prompt,) = model.memory_prompts([question], [len(part)], [answer])
        ids = torch.tensor(prompt.ids)
        sequence = generator.get_input_embeddings()(ids.clamp_min(0)).detach()
        sequence[ids == Marker.MEMORY] = part.flatten(0, 1)
        sequence[ids == Marker.SEPARATOR] = model.memory_tokens.separator.detach()
        with torch.no_grad():
            logits = generator(inputs_embeds=sequence[None], use_cache=False).logits[0]
        targets = ids[prompt.answer_start :]
        rows = logits[prompt.answer_start - 1 : -1]
        total += torch.nn.functional.cross_entropy(rows, targets, reduction="sum").item()
        count += len(targets)
    loss = model.answer_loss(QUESTIONS, each, answers)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
