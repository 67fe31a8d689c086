"""Measuring a model while it trains, also in a run that is resumed."""

from types import SimpleNamespace

import torch

from bench.watching import Watch


def test_a_curve_that_was_cut_off_is_taken_up(tmp_path):
    """What a killed call had measured after its last checkpoint is measured again."""
    watch = Watch(tmp_path / "curve.jsonl", 2, lambda model: {"memory": model})
    arguments = SimpleNamespace(device=torch.device("cpu"), bf16=False)
    control = SimpleNamespace(should_training_stop=False)

    def step(number):
        state = SimpleNamespace(global_step=number, max_steps=7)
        model = SimpleNamespace(model=number / 10)
        watch.on_step_end(arguments, state, control, model=model)

    watch.on_train_begin(arguments, SimpleNamespace(global_step=0), control)
    for number in range(1, 7):
        step(number)
    assert [record["step"] for record in watch.records] == [2, 4, 6]
    with open(tmp_path / "curve.jsonl", "a") as file:
        file.write('{"step": 7, "mem')  # a kill while it was written
    watch.on_train_begin(arguments, SimpleNamespace(global_step=3), control)
    for number in range(4, 8):
        step(number)
    assert watch.records == [{"step": n, "memory": n / 10} for n in (2, 4, 6, 7)]
    assert not control.should_training_stop
