"""`clara init`, `clara convert` and `clara info`: folders with models and indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara.cli import options
from clara.cli.errors import CommandError, user_errors
from clara.cli.paths import check_backbone, check_parent, check_reference, expanded
from clara.terminal.printing import one_line, print_json, quiet_libraries

_LEARNED = options.MemoryForm("learned")
Target = Annotated[str, typer.Argument(help="Folder to write: new or empty.")]


def init(
    backbone: Annotated[
        str, typer.Argument(help="Backbone: id on the Hugging Face hub, folder or GGUF file.")
    ],
    target: Target,
    compression_rate: Annotated[
        int,
        typer.Option("--compression-rate", min=1, help="Document tokens per memory token."),
    ] = 16,
    document_length: Annotated[
        int, typer.Option("--document-length", min=1, help="Longest document, in tokens.")
    ] = 256,
    memory_form: Annotated[
        options.MemoryForm,
        typer.Option(
            "--memory-form",
            help="learned: every document has the same number of memory tokens. spans: a memory "
            "token for every so many tokens.",
        ),
    ] = _LEARNED,
) -> None:
    """Make a model with untrained adapters on a backbone."""
    folder = empty_folder(target)
    check_backbone(backbone)
    from clara.config import ClaraConfig

    with user_errors():
        config = ClaraConfig(
            memory_form=memory_form.value,
            compression_rate=compression_rate,
            document_length=document_length,
        )
    quiet_libraries()
    from clara.model.checkpoint import described_memory
    from clara.model.clara import Clara

    with user_errors():
        # Half the memory of float32, and nothing is lost: all that is kept of it is random.
        model = Clara.from_backbone(backbone, config.replace(dtype="bfloat16"), device="cpu")
        model.config = config.replace(backbone=model.config.backbone)
        model.save_pretrained(folder)
    print(
        f"{one_line(target)}: up to {config.document_length} tokens of a document become "
        f"{described_memory(config)}. The adapters are untrained: they compute what "
        "the backbone computes, and answers are not meaningful until they are trained."
    )


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Reference checkpoint: folder or hub id, such as "
            "apple/CLaRa-7B-Base/compression-16."
        ),
    ],
    target: Target,
    backbone: options.Backbone = None,
) -> None:
    """Convert a checkpoint of the reference implementation into a model folder."""
    folder = empty_folder(target)
    check_reference(source)
    check_backbone(backbone)
    quiet_libraries()
    from clara.weights.reference import convert_reference

    with user_errors():
        config = convert_reference(source, folder, backbone=backbone)
    print(
        f"{one_line(target)}: compression {config.compression_rate}x, up to "
        f"{config.document_length} tokens of a document, backbone {one_line(str(config.backbone))}"
    )


def info(
    path: Annotated[
        str,
        typer.Argument(help="Model, index, training run, exported model or reference checkpoint."),
    ],
    as_json: options.Json = False,
) -> None:
    """Describe a model, index, training run, exported model or reference checkpoint."""
    from clara.cli.inspection import inspect, print_described

    found = inspect(expanded(path))
    if as_json:
        print_json(found)
        return
    print_described(found)


def empty_folder(target: str) -> Path:
    """A folder to write to.

    Raises:
        CommandError: there is something at that place, or it cannot be written to.
    """
    folder = expanded(target)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CommandError(f"{target}: exists already; choose a new or an empty folder")
    check_parent(folder)
    return folder
