"""Data sets of a hub, as a cache of `datasets` holds them that once could ask it."""

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(
    cache: Path,
    name: str,
    splits: dict[str, dict[str, list[Any]]],
    configuration: str = "default",
    commit: str = COMMIT,
) -> Path:
    """Put a data set into a cache; its folder."""
    owner, _, short = name.rpartition("/")
    folder = cache / f"{owner}___{short}" / configuration / "0.0.0" / commit
    folder.mkdir(parents=True)
    lengths = []
    for split, columns in splits.items():
        table = datasets.Dataset.from_dict(columns)
        table.save_to_disk(folder / split)
        (saved,) = (folder / split).glob("*.arrow")
        saved.rename(folder / f"{short}-{split}.arrow")
        lengths.append({"name": split, "num_bytes": 1, "num_examples": len(table)})
        features = table.features.to_dict()
    info = {
        "builder_name": "parquet",
        "dataset_name": short,
        "config_name": configuration,
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": {each["name"]: {**each, "dataset_name": short} for each in lengths},
        "features": features,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def without_network(monkeypatch, cache: Path) -> None:
    """Have `datasets` use this cache and ask no hub, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
