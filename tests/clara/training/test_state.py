"""State of a run on disk, and its log."""

import json
import random

import numpy as np
import pytest
import torch

from clara.training.folder import read_log
from clara.training.state import (
    CheckpointError,
    load_optimizer,
    load_random_state,
    save_optimizer,
    save_random_state,
)


def made(seed=0, kind=torch.optim.AdamW, sizes=((3, 4), (5,))):
    torch.manual_seed(seed)
    parameters = [torch.randn(size, requires_grad=True) for size in sizes]
    optimizer = kind(parameters, lr=0.1)
    return parameters, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def steps(parameters, optimizer, scheduler, count):
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.sin(parameter.detach() * 3)
        optimizer.step()
        scheduler.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_an_optimizer_goes_on(tmp_path, kind):
    parameters, optimizer, scheduler = made(kind=kind)
    middle = steps(parameters, optimizer, scheduler, 3)
    save_optimizer(tmp_path, optimizer, scheduler)
    wanted = steps(parameters, optimizer, scheduler, 4)
    others, optimizer, scheduler = made(seed=1, kind=kind)
    load_optimizer(tmp_path, optimizer, scheduler)
    with torch.no_grad():
        for parameter, value in zip(others, middle, strict=True):
            parameter.copy_(value)
    for one, other in zip(wanted, steps(others, optimizer, scheduler, 4), strict=True):
        assert torch.equal(one, other)


def test_a_gradient_scaler_goes_on(tmp_path):
    _, optimizer, scheduler = made()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    save_optimizer(tmp_path, optimizer, scheduler, scaler)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    load_optimizer(tmp_path, optimizer, scheduler, other)
    assert other.get_scale() == 1024.0


def test_an_optimizer_of_other_parameters(tmp_path):
    _, optimizer, scheduler = made()
    save_optimizer(tmp_path, optimizer, scheduler)
    _, optimizer, scheduler = made(sizes=((3, 4),))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_optimizer(tmp_path, optimizer, scheduler)


def test_another_kind_of_optimizer(tmp_path):
    _, optimizer, scheduler = made()
    save_optimizer(tmp_path, optimizer, scheduler)
    _, optimizer, scheduler = made(kind=torch.optim.SGD)
    with pytest.raises(CheckpointError, match=r"of another optimizer than SGD: one with .*betas"):
        load_optimizer(tmp_path, optimizer, scheduler)


def test_an_optimizer_of_a_torch_that_knew_one_setting_less(tmp_path):
    _, optimizer, scheduler = made()
    save_optimizer(tmp_path, optimizer, scheduler)
    written = json.loads((tmp_path / "schedule.json").read_text())
    for group in written["groups"]:
        del group["capturable"]
    (tmp_path / "schedule.json").write_text(json.dumps(written))
    parameters, optimizer, scheduler = made()
    load_optimizer(tmp_path, optimizer, scheduler)
    steps(parameters, optimizer, scheduler, 1)


def test_generators_go_on(tmp_path):
    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    draw()
    save_random_state(tmp_path, 0)
    wanted = draw()
    draw()
    load_random_state(tmp_path, 0)
    assert draw() == wanted
    with pytest.raises(CheckpointError, match="no random state of process 1"):
        load_random_state(tmp_path, 1)


def test_a_log_that_a_kill_cut_off(tmp_path):
    file = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) for step in (1, 2, 3)]
    file.write_text("\n".join(lines)[:-5], encoding="utf-8")
    assert [record["step"] for record in read_log(file)] == [1, 2]
    whole = '{"step": 1, "of": "\u2028"}\n{"step": 2, "of": "ü"}'.encode()
    file.write_bytes(whole)
    assert [record["of"] for record in read_log(file)] == ["\u2028", "ü"]
    file.write_bytes(whole[:-3])  # in the middle of a letter
    assert [record["step"] for record in read_log(file)] == [1]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"loss": 1}', b'{"step": "one"}', b'{"step": 1, "of": "\xff"}', b"[" * 10**5],
)
def test_a_log_that_is_none(tmp_path, line):
    file = tmp_path / "log.jsonl"
    file.write_bytes(line + b'\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl:1: is not a record of a run"):
        read_log(file)
