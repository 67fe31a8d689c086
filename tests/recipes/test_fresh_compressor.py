"""`recipes/fresh_compressor.py`: a compressor begins anew, memory stays the same on average."""

import json

import pytest
import torch

from clara import Clara
from clara.backbone.adapters import COMPRESSOR, GENERATOR, QUERY_REASONER
from clara.training.controls import states_and_added

RATES = [1, 2, 4, 8, 16]


@pytest.fixture
def script(scripts):
    return scripts.fresh


@pytest.fixture
def documents(tmp_path):
    """The file of candidates."""
    words = ["Kenya", "Chad", "Peru", "coast", "river", "border", "peak", "island", "railway"]
    texts = [" ".join(words[row:] + words[:row]) + f" {row} km." for row in range(8)]
    file = tmp_path / "ranking.jsonl"
    rows = [{"docs": texts[:5]}, {"docs": texts[3:]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_memory_stays_on_average_and_the_rest_as_it_is(
    script, documents, tmp_path, capsys, save_drawn
):
    source = save_drawn(tmp_path / "model", memory_form="spans", compression_rate=4, rates=RATES)
    assert script.main([str(source), str(tmp_path / "new"), "--documents", str(documents)]) == 0
    told = json.loads(capsys.readouterr().out)

    old, new = (Clara.from_pretrained(tmp_path / name, device="cpu") for name in ("model", "new"))
    texts = script.texts(documents)
    assert len(texts) == 8
    before, after = (
        torch.cat([states_and_added(model, texts, rate)[1] for rate in script.RATES])
        for model in (old, new)
    )
    constant = before.mean(0)
    assert (after.mean(0) - constant).norm() < 0.1 * constant.norm()
    assert told["after"] == pytest.approx(float(after.norm(dim=1).mean()), rel=1e-4)
    # What differs is what states differ by, at a tenth, beside what is left of the constant.
    states = torch.cat([states_and_added(new, texts, rate)[0] for rate in script.RATES])
    share = (after - after.mean(0)).norm() / (states - states.mean(0)).norm()
    assert float(share) == pytest.approx(script.SHARE, rel=0.3)

    assert new.config.replace(backbone=None) == old.config.replace(backbone=None)
    for name, weight in old.adapters.state(GENERATOR).items():
        assert torch.equal(new.adapters.state(GENERATOR)[name], weight)
    for name, row in old.memory_tokens.state_dict().items():
        assert torch.equal(new.memory_tokens.state_dict()[name], row)
    for adapter in (COMPRESSOR, QUERY_REASONER):
        state = new.adapters.state(adapter)
        assert not any(weight.any() for name, weight in state.items() if "lora_B" in name)
    assert not new.connectors.of(QUERY_REASONER).up.any()


@pytest.mark.parametrize(
    ("settings", "there", "error"),
    [
        ({"memory_form": "spans", "rates": RATES, "compression_rate": 4}, True, "exists; name a"),
        ({}, False, "needs memory_form spans"),
    ],
    ids=["a target that is there", "learned"],
)
def test_bad_input(script, documents, tmp_path, capsys, settings, there, error, save_drawn):
    source, target = save_drawn(tmp_path / "model", **settings), tmp_path / "new"
    if there:
        target.mkdir()
        (target / "precious").write_text("kept")
    assert script.main([str(source), str(target), "--documents", str(documents)]) == 1
    told = capsys.readouterr().err
    assert error in told
    assert told.count("\n") == 1
    assert not there or (target / "precious").read_text() == "kept"
    assert there or not target.exists()
