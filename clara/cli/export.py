"""`clara export`: a model for other engines."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from clara.cli import options
from clara.cli.errors import user_errors
from clara.cli.loading import load_model
from clara.cli.paths import check_model, expanded
from clara.terminal.printing import one_line, print_json, say, size

_AUTO = options.DtypeName("auto")


def export(
    merged: Annotated[
        str,
        typer.Option(
            "--merged",
            metavar="TARGET",
            help="Folder for the backbone with the generator merged into it, as a plain "
            "transformers model: new, empty, or an earlier export, which is replaced.",
        ),
    ],
    model: options.Model,
    dtype: Annotated[
        options.DtypeName,
        typer.Option(
            "--dtype",
            help="Of the weights, which are merged in float32 and rounded once. auto: what the "
            "backbone is stored in.",
        ),
    ] = _AUTO,
    backbone: options.Backbone = None,
    quantization: options.Quantized = None,
    as_json: options.Json = False,
) -> None:
    """Write a plain transformers model that answers from memory in programs without CLaRa.

    The folder has weights, configuration, tokenizer, and clara.json, which says how to build
    prompts with memory.
    """
    check_model(model, backbone=backbone)
    from clara.integrations.export import check_target, export_merged
    from clara.model import shipped

    target = expanded(merged).absolute()
    source = expanded(model) if expanded(model).is_dir() else shipped.find(model)
    read = [] if source is None else [source]
    check_target(target, read)
    loaded = load_model(
        model, backbone=backbone, device="cpu", quantization=quantization, dtype="float32"
    )
    with user_errors():
        found = export_merged(loaded, target, dtype=dtype.value, apart_from=read, release=True)
    if not found["trained"]:
        say(
            "the generator is untrained: what was written is the backbone, and its answers from "
            "memory are not meaningful"
        )
    shown = {
        "path": os.path.realpath(target),
        **{name: found[name] for name in ("backbone", "dtype", "trained", "rounding", "files")},
        "bytes": sum((target / name).stat().st_size for name in found["files"]),
    }
    if as_json:
        print_json(shown)
        return
    print(
        f"{one_line(merged)}: {one_line(found['backbone'])} with the generator merged, in "
        f"{found['dtype']}, {size(shown['bytes'])}"
    )
    if found["rounding"]:
        print(
            f"rounding to {found['dtype']} changed the weights by {found['rounding']:.1%} of what "
            "the generator adds to them; --dtype float32 keeps all of it"
        )
