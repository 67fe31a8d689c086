"""A small model and small data that training is tested with."""

import json

import pytest

from clara import ClaraConfig
from clara.training.run import run
from clara.training.settings import RunSettings

from ..new_models import new_model
from ..random_adapters import draw_adapters

NAMES = ["Ada", "Ben", "Cid", "Dora", "Eve", "Finn", "Gus", "Hal"]
TOWNS = ["Ayr", "Bath", "Cork", "Deal", "Ely", "Frome", "Gort", "Hull"]


def fact(row):
    name, town = NAMES[row % 8], TOWNS[(row * 3 + row // 8) % 8]
    return f"{name} number {row} lives in {town}.", f"Where does {name} number {row} live?", town


def pretraining_rows(count=24):
    rows = []
    for row in range(count):
        text, question, town = fact(row)
        if row % 4 == 3:
            rows.append(
                {
                    "data_type": "paraphrase",
                    "question": ["Say it in other words."],
                    "answers": [f"In {town} lives number {row}."],
                    "docs": [text],
                }
            )
        else:
            questions = [question, "Which number is it?"][: 1 + row % 2]
            rows.append(
                {
                    "data_type": "qa",
                    "question": questions,
                    "answers": [town, str(row)][: len(questions)],
                    "docs": [text],
                }
            )
    return rows


def ranking_rows(count=24):
    rows = []
    for row in range(count):
        _, question, town = fact(row)
        gold = row % 3
        others = [fact((row + 5 * i) % 40)[0] for i in range(1, 4 + row % 4)]
        documents = [*others[:gold], fact(row)[0], *others[gold:]]
        rows.append({"question": question, "docs": documents, "pos_index": [gold], "answer": town})
    return rows


@pytest.fixture(scope="session")
def training_data(tmp_path_factory):
    """Folder with pretrain.jsonl and ranking.jsonl, the latter also for instruction tuning."""
    folder = tmp_path_factory.mktemp("training-data")
    for name, rows in (("pretrain", pretraining_rows()), ("ranking", ranking_rows())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def random_model(backbone, *, std=0.1, **settings):
    """A small model, adapters drawn at random."""
    config = ClaraConfig(
        **{
            "compression_rate": 16,
            "document_length": 64,
            "lora_rank": 4,
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "dtype": "float32",
            "top_k": 2,
            **settings,
        }
    )
    return draw_adapters(new_model(backbone, config), seed=0, std=std)


@pytest.fixture
def make_model(tiny_backbone):
    """A function that makes a small model of its own, adapters drawn at random."""

    def make(family="llama", **settings):
        return random_model(tiny_backbone(family), **settings)

    return make


@pytest.fixture(scope="module")
def teacher_folder(tiny_backbone, tmp_path_factory):
    """A model with adapters drawn at random, as a teacher."""
    folder = tmp_path_factory.mktemp("teacher") / "drawn"
    draw_adapters(random_model(tiny_backbone("llama")), seed=7, std=0.2).save_pretrained(folder)
    return folder


SMALL_RUN = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def settings_in(tiny_backbone, training_data):
    """A function that makes settings of a run in a folder."""

    def make(folder, data="pretrain", model=None, config=None, evaluation=False, **arguments):
        small = {"compression_rate": 16, "document_length": 64, "lora_rank": 4, "top_k": 2}
        file = str(training_data / f"{data}.jsonl")
        return RunSettings(
            model=None if model is None else str(model),
            backbone=None if model else str(tiny_backbone("llama")),
            config={**({} if model else small), **(config or {})},
            train_data=file,
            eval_data=file if evaluation else None,
            train_split="train",
            eval_split="validation",
            arguments={**SMALL_RUN, "output_dir": str(folder), **arguments},
        )

    return make


@pytest.fixture
def settings(settings_in, tmp_path):
    """A function that makes settings of a run in `tmp_path / name`."""

    def make(name="run", **options):
        return settings_in(tmp_path / name, **options)

    return make


@pytest.fixture(scope="session")
def pretrained(settings_in, tmp_path_factory):
    """What a small run of pretraining came to; shared, so leave its folder as it is."""
    return run("pretrain", settings_in(tmp_path_factory.mktemp("pretrained") / "run"))
