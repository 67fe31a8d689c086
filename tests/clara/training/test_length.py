"""How many steps a run takes, and runs that would take none."""

import pytest
import torch

from clara.training.arguments import ClaraTrainingArguments
from clara.training.length import length_of, remarks
from clara.training.settings import SettingsError
from clara.training.trainer import ClaraTrainer


def arguments(folder, **values):
    return ClaraTrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "use_cpu": True,
            "report_to": "none",
            **values,
        }
    )


class Nothing(torch.nn.Module):
    """What stands for an objective where only the data is looked at."""


@pytest.mark.parametrize("examples", [1, 3, 4, 5, 8, 23])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"total_batch_size": 16},
        {"num_train_epochs": 2.5},
        {"max_steps": 7},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 1},
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path, examples, values):
    made = arguments(tmp_path, **values)
    length = length_of(made, examples)
    trainer = ClaraTrainer(Nothing(), made, lambda batch: batch, [0] * examples)
    loader = trainer.get_train_dataloader()
    found = trainer.set_initial_training_values(made, loader)
    assert length.total == found[-1]
    assert length.epoch == found[1]


def test_dropping_the_last_batch_may_leave_none(tmp_path):
    made = arguments(tmp_path, dataloader_drop_last=True)
    assert length_of(made, 4).total == 1
    with pytest.raises(SettingsError, match="leaves nothing to train on: train_data has 3 example"):
        length_of(made, 3)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_a_single_step_of_warm_up_learns_nothing(tmp_path, schedule):
    given = {"total_batch_size": 128, "lr_scheduler_type": schedule}
    with pytest.raises(
        SettingsError,
        match=r"1 step \(train_data has 30 examples, a step takes 128\), and warmup_steps 0\.03",
    ):
        length_of(arguments(tmp_path, warmup_steps=0.03, **given), 30)
    for fine in ({"warmup_steps": 0}, {"warmup_steps": 0.03, "num_train_epochs": 2}):
        assert length_of(arguments(tmp_path, **given, **fine), 30).total >= 1


def test_a_schedule_without_warm_up_learns_in_one_step(tmp_path):
    made = arguments(tmp_path, warmup_steps=5, lr_scheduler_type="constant", max_steps=1)
    assert length_of(made, 30).total == 1


def test_remarks(tmp_path):
    def said(examples=30, **values):
        made = arguments(tmp_path, **values)
        return remarks(made, length_of(made, examples))

    assert said() == []
    (line,) = said(total_batch_size=128)
    assert "30 examples and a step takes 128" in line
    assert "1 step in all" in line
    (line,) = said(warmup_steps=10, max_steps=5)
    assert line == "warmup_steps 10 takes all 5 steps: learning_rate 5e-05 is never reached"
    assert said(learning_rate=0) == ["learning_rate is 0: nothing is learnt"]
