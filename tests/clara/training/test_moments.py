"""Batches that are made when the step begins."""

from collections import Counter

import pytest
import torch

from clara.data.examples import ExampleFile, pretraining_example
from clara.training.arguments import ClaraTrainingArguments
from clara.training.collators import CompressionCollator
from clara.training.compression import CompressionObjective
from clara.training.encoder import Encoder
from clara.training.folder import checkpoints
from clara.training.moments import Moment
from clara.training.trainer import ClaraTrainer


class Recorder:
    """Collates as usual and keeps what it was called with."""

    asks_for_moment = True

    def __init__(self, model):
        self.collate = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        self.calls = []

    def __call__(self, examples, moment):
        self.calls.append((moment, tuple(examples)))
        return self.collate(examples)


@pytest.fixture
def trained(make_model, training_data, tmp_path):
    """A function that trains with a recorder; gives the trainer and the recorder."""
    examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)

    def go(name="run", resume=None, evaluation=None, **arguments):
        model = make_model()
        recorder = Recorder(model)
        settings = ClaraTrainingArguments(
            output_dir=str(tmp_path / name),
            report_to="none",
            disable_tqdm=True,
            save_steps=2,
            **{
                "max_steps": 8,
                "per_device_train_batch_size": 3,
                "gradient_accumulation_steps": 2,
                **arguments,
            },
        )
        trainer = ClaraTrainer(
            CompressionObjective(model), settings, recorder, examples, evaluation and examples
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, recorder

    return go


def test_the_collator_knows_the_step(trained):
    _, recorder = trained()
    moments = [moment for moment, _ in recorder.calls]
    assert [moment.step for moment in moments] == [step for step in range(8) for _ in range(2)]
    assert {moment.total for moment in moments} == {8}
    assert len({moment.seed for moment in moments}) == 16
    assert {len(examples) for _, examples in recorder.calls} == {3}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_makes_the_same_batches(trained, tmp_path, workers):
    """In the middle of an epoch, and in the next one."""
    _, whole = trained("whole", max_steps=8)
    trained("parts", max_steps=3)
    last = str(checkpoints(tmp_path / "parts")[-1])
    assert last.endswith("-3")
    _, rest = trained("parts", resume=last, max_steps=8, dataloader_num_workers=workers)
    assert rest.calls == whole.calls[6:]


def test_the_last_step_of_an_epoch_takes_what_is_left(trained):
    """24 examples in batches of 5, two to a step."""
    _, recorder = trained(per_device_train_batch_size=5, max_steps=6)
    sizes = [len(examples) for _, examples in recorder.calls]
    assert sizes == [5, 5, 5, 5, 4] * 2
    steps = [moment.step for moment, _ in recorder.calls]
    assert steps == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]


def test_every_evaluation_has_the_same_moments(trained):
    trainer, recorder = trained(
        evaluation=True, eval_strategy="steps", eval_steps=4, per_device_eval_batch_size=10
    )
    every = [call for call in recorder.calls if len(call[1]) > 3 or call[0].seed < 3]
    first, second = every[:3], every[3:]
    assert first == second
    assert [moment for moment, _ in first] == [Moment(7, 8, seed) for seed in range(3)]
    assert Counter(len(examples) for _, examples in first) == {10: 2, 4: 1}
    scores = [r["eval_ce"] for r in trainer.state.log_history if "eval_ce" in r]
    assert len(scores) == 2


def test_other_collators_work_in_the_loaders_process(make_model, training_data, tmp_path):
    examples = ExampleFile(training_data / "pretrain.jsonl", pretraining_example)
    found = []
    for workers in (0, 2):
        model = make_model()
        collator = CompressionCollator(Encoder(model.tokenizer, model.config, None))
        arguments = ClaraTrainingArguments(
            output_dir=str(tmp_path / str(workers)),
            report_to="none",
            disable_tqdm=True,
            max_steps=2,
            per_device_train_batch_size=4,
            dataloader_num_workers=workers,
        )
        trainer = ClaraTrainer(CompressionObjective(model), arguments, collator, examples)
        assert trainer.data_collator is collator
        trainer.train()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
