"""What stages that rank start from: the query reasoner, candidates and their index."""

import dataclasses
import json

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, QUERY_REASONER
from clara.training.folder import read_log
from clara.training.run import run
from clara.training.settings import SettingsError
from clara.training.stages import start_query_reasoner

from .conftest import ranking_rows
from .runs import assert_same, weights


class TestStartOfTheQueryReasoner:
    @pytest.mark.parametrize(
        ("source", "trained", "copied"),
        [
            (None, False, True),
            (None, True, False),
            ("compressor", True, True),
            ("saved", False, False),
        ],
    )
    def test_where_it_starts(self, make_model, source, trained, copied):
        model = make_model()
        if not trained:
            for name, value in model.adapters.parameters(QUERY_REASONER).items():
                if ".lora_B." in name:
                    value.data.zero_()
        before = {n: v.clone() for n, v in model.adapters.state(QUERY_REASONER).items()}
        assert start_query_reasoner(model, source) is copied
        wanted = model.adapters.state(COMPRESSOR) if copied else before
        assert_same(dict(model.adapters.state(QUERY_REASONER)), dict(wanted))

    def test_end_to_end_starts_from_the_compressor(self, pretrained, settings):
        made = settings("second", data="ranking", model=pretrained.model, learning_rate=0.0)
        second = weights(run("end-to-end", made).model)
        for name, value in weights(pretrained.model).items():
            if name.startswith(COMPRESSOR):
                assert torch.equal(second[name.replace(COMPRESSOR, QUERY_REASONER)], value)


class TestCandidates:
    def test_an_index_of_another_compressor(self, pretrained, settings, make_model, tmp_path):
        index = str(tmp_path / "index")
        made = settings("a", data="ranking", model=pretrained.model, candidate_index=index)
        run("end-to-end", made)
        make_model().save_pretrained(tmp_path / "other")
        made = settings("b", data="ranking", model=tmp_path / "other", candidate_index=index)
        with pytest.raises(
            ValueError, match=r"was written by another model .* choose another candidate_index"
        ):
            run("end-to-end", made)

    def test_what_is_logged(self, pretrained, settings, tmp_path):
        run("end-to-end", settings("second", data="ranking", model=pretrained.model))
        record = read_log(tmp_path / "second" / "log.jsonl")[0]
        assert 0 <= record["recall@1"] <= record["recall@3"] <= record["recall@5"] <= 1
        assert record["effective_compression"] > 1
        assert record["loss"] == pytest.approx(record["ce"])

    def test_an_index_is_used_again(self, pretrained, settings, tmp_path, monkeypatch):
        index = str(tmp_path / "index")
        again = {"data": "ranking", "model": pretrained.model, "candidate_index": index}
        run("end-to-end", settings("a", **again))
        monkeypatch.setattr(
            Clara, "compress", lambda *_, **__: pytest.fail("documents are compressed again")
        )
        run("contrastive", settings("b", **again))

    def test_a_candidate_without_text_leaves_its_questions_out(self, settings, tmp_path):
        rows = ranking_rows(8)
        rows[2]["docs"][1] = "  "
        rows[5]["docs"] = [""] * 3
        rows[6]["docs"].append("The river runs past the old mill. " * 40)
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for stage in ("end-to-end", "contrastive"):
            made = settings(stage, max_steps=1, per_device_train_batch_size=8)
            made = dataclasses.replace(made, train_data=str(data))
            wanted = {"candidate empty or too long": 2, "candidate truncated": 1}
            assert run(stage, made).events == wanted
        strict = settings("strict", on_unusable="error")
        with pytest.raises(ValueError, match="candidates that are empty or too long: 2"):
            run("end-to-end", dataclasses.replace(strict, train_data=str(data)))

    def test_a_schedule_that_is_none_is_found_before_candidates_are_compressed(
        self, settings, monkeypatch
    ):
        monkeypatch.setattr(Clara, "compress", lambda *_, **__: pytest.fail("compressed"))
        made = settings(data="ranking", selection=[{"temperatur": 1.0}])
        with pytest.raises(ValueError, match="selection: a phase has fields"):
            run("end-to-end", made)

    def test_noise_with_a_large_seed(self, settings):
        made = settings(data="ranking", seed=2_147_483_000, max_steps=1)
        made = dataclasses.replace(made, config={**made.config, "noise": "gumbel"})
        assert run("end-to-end", made).steps == 1

    def test_the_backbone_must_stay(self, settings):
        with pytest.raises(SettingsError, match="changes the compressor"):
            run("end-to-end", settings(data="ranking", train_backbone=True))
