"""Reading the settings of a run from YAML and from the command line.

This module does not import torch or transformers, which takes seconds: a mistyped setting is
reported at once.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from clara.errors import reason
from clara.training.settings import STAGES, RunSettings, SettingsError, Stage, as_number

_OWN = {f.name: f for f in fields(RunSettings) if f.name not in ("config", "arguments")}


def read_settings(path: str | Path, stage: Stage, overrides: Mapping[str, Any]) -> RunSettings:
    """Read the settings of one stage.

    The file is a mapping. Settings under a stage's name apply to that stage and override the
    common ones. `extends` names a base file, relative to this one; this file overrides it.
    `overrides` override everything.

    Raises:
        SettingsError: the file is not YAML, a setting is unknown, or there is no data; the message
            names the file.
    """
    merged = {**_settings_of(Path(path).expanduser(), stage, ()), **overrides}
    known, of_model = trainer_settings(), model_settings()
    for name in merged:
        if name not in known | _OWN.keys() | of_model:
            close = difflib.get_close_matches(name, known | _OWN.keys() | of_model, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"{path}: unknown setting {name!r}{hint}")
    if not merged.get("train_data"):
        raise SettingsError(f"{path}: no train_data for {stage}")
    if not (merged.get("model") or merged.get("backbone")):
        raise SettingsError(f"{path}: neither a model nor a backbone to train")
    if not merged.get("output_dir"):
        raise SettingsError(f"{path}: no output_dir for {stage}")
    own: dict[str, Any] = {name: merged.get(name) for name in _OWN}
    for name, value in own.items():
        if value is not None and not isinstance(value, str):
            raise SettingsError(f"{path}: {name} must be a string, got {value!r}")
    own["train_split"] = own["train_split"] or "train"
    own["eval_split"] = own["eval_split"] or "validation"
    return RunSettings(
        **own,
        config={name: value for name, value in merged.items() if name in of_model},
        arguments={name: value for name, value in merged.items() if name in known},
    )


def _settings_of(path: Path, stage: Stage, above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of a file for a stage, with those of the files it extends."""
    if path.resolve() in above:
        raise SettingsError(f"{path}: extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: not readable as YAML: {reason(error, None)}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise SettingsError(f"{path}: must be a mapping from names of settings to values")
    parent = values.pop("extends", None)
    base: dict[str, Any] = {}
    if parent is not None:
        if not isinstance(parent, str):
            raise SettingsError(f"{path}: extends must be the name of a file, got {parent!r}")
        base = _settings_of(path.parent / parent, stage, (*above, path.resolve()))
    stages = {name: values.pop(name) for name in STAGES if name in values}
    for name, section in stages.items():
        if not isinstance(section, dict):
            raise SettingsError(f"{path}: {name} must be a mapping, got {section!r}")
    return {**base, **values, **stages.get(stage, {})}


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """Parse options such as `--max-steps 20 --bf16 --selection '[{temperature: 0.1}]'`.

    A value is read as YAML; an option without a value is true.

    Raises:
        SettingsError: a word does not belong to an option, or a value is not YAML.
    """
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--") or len(word) < 3:
            raise SettingsError(f"unexpected argument {word!r}; settings are given as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if position < len(words) and not words[position].startswith("--"):
                value = words[position]
                position += 1
            else:
                value = "true"
        try:
            overrides[name.replace("-", "_")] = as_number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise SettingsError(f"--{name}: {value!r} is not readable as YAML") from error
    return overrides


# Names of settings


def trainer_settings() -> set[str]:
    """Names of the trainer's settings, transformers' and ours."""
    ours = _declared("clara", "training/arguments.py", "ClaraTrainingArguments")
    theirs = _declared("transformers", "training_args.py", "TrainingArguments")
    if not ours or not theirs:  # no sources to look at
        from clara.training.arguments import ClaraTrainingArguments

        return {f.name for f in fields(ClaraTrainingArguments) if f.init}
    return {*ours, *theirs}


def model_settings() -> set[str]:
    """Names of the settings in `ClaraConfig` but "backbone"."""
    names = _declared("clara", "config.py", "ClaraConfig")
    if not names:
        from clara.config import ClaraConfig

        names = frozenset(f.name for f in fields(ClaraConfig))
    return set(names) - {"backbone"}


@cache
def _declared(package: str, file: str, name: str) -> frozenset[str]:
    """Fields of a dataclass from its source, which reads in milliseconds; empty if there is none.

    Fields that its `__init__` does not take are left out.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        try:
            tree = ast.parse(Path(folder, file).read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return frozenset(
                    part.target.id
                    for part in node.body
                    if isinstance(part, ast.AnnAssign)
                    and isinstance(part.target, ast.Name)
                    and not _is_left_out(part)
                )
    return frozenset()


def _is_left_out(declaration: ast.AnnAssign) -> bool:
    value = declaration.value
    if ast.unparse(declaration.annotation).startswith("ClassVar"):
        return True
    given = value.keywords if isinstance(value, ast.Call) else []
    return any(k.arg == "init" and ast.unparse(k.value) == "False" for k in given)
