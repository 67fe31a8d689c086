"""Prompts, replies and the generator in this process."""

import asyncio
import json
import re

import pytest
import torch

from clara.data import DataError
from clara.data.records import Document
from clara.synthesis import local, replies
from clara.synthesis.document import Limits
from clara.synthesis.generators import RequestFailedError, Sampling
from clara.synthesis.local import LocalGenerator
from clara.synthesis.prompts import PARAPHRASE_TASKS, SynthesisPrompts, paraphrase_task
from clara.synthesis.run import SynthesisSettings, synthesize
from clara.text.tokenizer import Control

from .server import answered


class TestPrompts:
    def test_values_are_json(self):
        text = 'He said "no".\n{document} \u2028'
        system, user = SynthesisPrompts().messages("simple_questions", document=text)
        assert system["role"] == "system"
        decoder = json.JSONDecoder()
        start = user["content"].index("Document: ") + len("Document: ")
        assert decoder.raw_decode(user["content"], start)[0] == text
        assert '{"questions": ["...", "..."]}' in user["content"]

    def test_a_file_replaces_what_it_names(self, tmp_path):
        file = tmp_path / "prompts.yaml"
        file.write_text("judge: '{document} {question} {answer} right?'\n", encoding="utf-8")
        prompts = SynthesisPrompts.load(file)
        assert prompts.judge.endswith("right?")
        assert prompts.answer == SynthesisPrompts().answer

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("juge: x", "unknown prompt 'juge'; prompts are system,"),
            ("judge: '{document} {question}'", r"'judge' lacks placeholder \{answer\}"),
            ("system: 'be {nice}'", r"'system' has the unknown placeholder \{nice\}"),
            ("repair: 'bad {'", "prompt 'repair': "),
            ("judge: 3", "'judge' must be a text, got 3"),
            ("[]", "must be a mapping"),
            ("judge: [", "not YAML"),
            ("paraphrase: '{document:>9}'", "placeholders are names alone"),
            ("paraphrase: '{document!r}'", "placeholders are names alone"),
            ("paraphrase: '{document.text}'", "lacks placeholder|unknown placeholder"),
            ('system: "\\ud800"', "surrogates not allowed"),
            ("judge: !!python/object/apply:os.system ['true']", "not YAML"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, text, message):
        file = tmp_path / "prompts.yaml"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=rf"prompts\.yaml: .*{message}"):
            SynthesisPrompts.load(file)

    def test_control_tokens_of_a_document_are_escaped(self):
        text = "a</s><|im_end|>[INST]<｜User｜><s> a < b, [1], [x], [AB c], <3"
        _, user = SynthesisPrompts().messages("paraphrase", document=text)
        shown = user["content"].split("Document: ")[1].split("\n")[0]
        assert json.loads(shown) == text
        assert not re.search(r"</s>|<\||\[INST|<｜|<s>", shown)
        assert shown.endswith(' a < b, [1], [x], [AB c], <3"')

    def test_doubled_braces_are_single(self):
        system, _ = SynthesisPrompts(system='{{"a": 1}}').messages("paraphrase", document="")
        assert system["content"] == '{"a": 1}'

    def test_no_file(self, tmp_path):
        with pytest.raises(DataError, match="No such file"):
            SynthesisPrompts.load(tmp_path / "none.yaml")

    def test_tasks_of_paraphrases(self):
        tasks = [paraphrase_task(str(i), 0) for i in range(400)]
        assert set(tasks) == set(PARAPHRASE_TASKS)
        assert len(PARAPHRASE_TASKS) == 12
        assert tasks == [paraphrase_task(str(i), 0) for i in range(400)]
        assert tasks != [paraphrase_task(str(i), 1) for i in range(400)]


class TestReplies:
    @pytest.mark.parametrize(
        "text",
        [
            '{"questions": ["a", "b"]}',
            '```json\n{"questions": [" a ", "b"], "more": 1}\n```',
            'first {"x": 1} then {"questions": ["a", "b"]}',
            '{"questions": ["a", "b"]} once more: {"questions": ["a", "b"]}',
            '<think>perhaps {"questions": ["c"]}</think>{"questions": ["a", "b"]}',
            '{"questions": ["a\x00", "b\ud800"]}',
            "{ { " + '{"questions": ["a", "b"]}',
        ],
    )
    def test_objects_are_found(self, text):
        assert replies.parse_reply(text, replies.Questions).questions == ["a", "b"]

    @pytest.mark.parametrize(
        ("text", "kind", "message"),
        [
            ("", replies.Questions, "no JSON object"),
            ("[1]", replies.Questions, "no JSON object"),
            ('{"questions": "a"}', replies.Questions, "questions: "),
            ('{"questions": [1]}', replies.Questions, r"questions.0: "),
            ('{"correct": "true"}', replies.Verdict, "correct: "),
            ('{"correct": 1}', replies.Verdict, "correct: "),
            ("{}", replies.Coverage, "missing: Field required"),
            ('{"questions": ["a"', replies.Questions, "delimiter|Unterminated|Expecting"),
            ('{"correct": true}, no: {"correct": false}', replies.Verdict, "several objects"),
            ('{"text": {"correct": true}}', replies.Verdict, "correct: Field required"),
            ("{" * 100_000, replies.Questions, "Expecting"),
            ('{"a":' * 100_000, replies.Questions, "recursion|Expecting|no JSON"),
        ],
    )
    def test_what_is_none(self, text, kind, message):
        with pytest.raises(replies.UnreadableReplyError, match=message):
            replies.parse_reply(text, kind)


class TestLocalGenerator:
    @pytest.fixture
    def make(self, tiny_backbone):
        def go(concurrency=4, **sampling):
            settings = Sampling(**{"temperature": 0.0, "max_tokens": 8, **sampling})
            return LocalGenerator(str(tiny_backbone("llama")), settings, concurrency, "cpu")

        return go

    def test_batches_give_what_single_requests_give(self, make):
        asked = [
            [{"role": "system", "content": "s"}, {"role": "user", "content": "x " * n}]
            for n in (1, 9, 4, 2, 7)
        ]

        async def all_of(generator):
            return await asyncio.gather(*(generator.complete(each) for each in asked))

        one = asyncio.run(all_of(make(1)))
        many = asyncio.run(all_of(make(4)))
        assert one == many
        assert len({reply.prompt_tokens for reply in one}) == 5
        assert all(0 < reply.completion_tokens <= 8 for reply in one)

    def test_replies_that_are_no_json(self, make, tmp_path):
        settings = SynthesisSettings(SynthesisPrompts(), Limits())
        documents = [Document("a", "The x of y is z.")]
        report = synthesize(documents, tmp_path / "out.jsonl", make(), settings)
        assert report["left_out"] == {"questions: unreadable reply": 1}
        assert report["tokens"]["completion"] > 0

    def test_replies_that_are(self, make, tmp_path, monkeypatch):
        """The whole loop, with the model's words put into its mouth."""
        generator = make(max_tokens=1500)
        tokenizer, batches = generator._tokenizer.tokenizer, []

        def speak(input_ids, attention_mask, generation_config, **_):
            batches.append(len(input_ids))
            asked = [
                tokenizer.decode(ids[seen == 1], skip_special_tokens=True)
                for ids, seen in zip(input_ids, attention_mask)
            ]
            said = [tokenizer(json.dumps(answered(text))).input_ids for text in asked]
            longest = max(map(len, said)) + 1
            padded = [ids + [tokenizer.eos_token_id] * (longest - len(ids)) for ids in said]
            rows = zip(input_ids.tolist(), padded, strict=True)
            return torch.tensor([[*row, *more] for row, more in rows])

        monkeypatch.setattr(generator._model, "generate", speak)
        documents = [Document(str(i), f"The x of y{i} is z{i}.") for i in range(3)]
        settings = SynthesisSettings(SynthesisPrompts(), Limits())
        report = synthesize(documents, tmp_path / "out.jsonl", generator, settings)
        assert report["finished"] == 3
        assert report["pairs"] == {"simple": 3}
        assert max(batches) == 3

    def test_a_request_over_the_window_fails_alone(self, make):
        generator = make()
        short = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
        long = [short[0], {"role": "user", "content": "word " * 3000}]

        async def ask():
            asked = (generator.complete(each) for each in (short, long, short))
            return await asyncio.gather(*asked, return_exceptions=True)

        one, failed, other = asyncio.run(ask())
        assert one == other
        assert isinstance(failed, RequestFailedError)
        assert failed.reason == "longer than the model reads"
        assert "the model reads 2048" in str(failed)

    def test_text_is_no_control_token(self, make):
        generator = make()
        tokenizer = generator._tokenizer.tokenizer
        for template in (tokenizer.chat_template, None):
            tokenizer.chat_template = template
            turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
            plain = generator._encoded(turns)
            turns[1]["content"] = "".join(tokenizer.all_special_tokens)
            hostile = generator._encoded(turns)
            special = set(tokenizer.all_special_ids)
            assert [i for i in hostile if i in special] == [i for i in plain if i in special]

    def test_templates(self, make):
        generator = make()
        tokenizer = generator._tokenizer.tokenizer
        turns = [{"role": "system", "content": "sys"}, {"role": "user", "content": "ask"}]
        tokenizer.chat_template = (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}"
            "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}[go]"
        )
        assert tokenizer.decode(generator._encoded(turns)) == "[user]sys\n\nask[go]"
        tokenizer.chat_template = "{{ bos_token }}"
        with pytest.raises(DataError, match="does not write the texts"):
            generator._encoded(turns)

    @pytest.mark.parametrize("closing", ["</s>", "<|user|>", " <|user|>\n", "\n### user:\n"])
    def test_a_reply_ends_where_the_template_ends_a_turn(self, make, monkeypatch, closing):
        loaded = local._loaded

        def with_template(*arguments):
            tokenizer, model = loaded(*arguments)
            tokenizer.chat_template = (
                "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ "
                + repr(closing)
                + " }}{% endfor %}"
            )
            return tokenizer, model

        monkeypatch.setattr(local, "_loaded", with_template)
        generator = make(max_tokens=40)
        said = generator._tokenizer.encode_texts(["north"])[0].ids
        end = generator._tokenizer.encode_pieces([Control(closing)]).ids
        ids = [*said, *end, *generator._tokenizer.encode_texts([" more"])[0].ids]
        steps = []

        def put(module, arguments, logits):
            made = torch.full_like(logits, -100.0)
            made[..., ids[min(len(steps), len(ids) - 1)]] = 100.0
            steps.append(1)
            return made

        generator._model.get_output_embeddings().register_forward_hook(put)
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
        reply = asyncio.run(generator.complete(turns))
        assert reply.text == "north"
        assert len(steps) == reply.completion_tokens <= len(said) + len(end)

    def test_closing_stops_generation(self, make):
        generator = make(max_tokens=2000)
        generator._ends = []
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]

        async def ask():
            asked = [asyncio.create_task(generator.complete(turns)) for _ in range(9)]
            while len(steps) < 3:
                await asyncio.sleep(0.01)
            await generator.close()
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            return len(steps)

        steps = []  # of 2000 for each of three batches
        head = generator._model.get_output_embeddings()
        head.register_forward_hook(lambda *_: steps.append(1))
        assert asyncio.run(ask()) < 1000

    def test_no_such_model(self, tmp_path):
        with pytest.raises(DataError, match="cannot load generator"):
            LocalGenerator(str(tmp_path / "none"), Sampling(), 1, "cpu")
