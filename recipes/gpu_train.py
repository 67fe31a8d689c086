"""Train SmolLM2-135M's weights on one GPU for seven minutes, on a machine that has little else.

    python recipes/gpu_train.py prepare          # here, `make gpu-train-parts`: what goes there
    python recipes/gpu_train.py train            # there, `make gpu-train`
    python recipes/gpu_train.py collect FOLDER   # here: what came back becomes the snapshot

That machine has the files of this checkout and the parts, and a Python with torch, transformers,
peft and accelerate; no network, no `gguf` and no install of this package. It leaves its best
adapters in --output ($OUT, or build/gpu-train/result) every minute. After `collect`,
`make train-weights` goes on from them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu_parts import (
    CALL,
    MANIFEST,
    MIB,
    PACKED,
    PART,
    WEIGHTS,
    PartsError,
    join_parts,
    pack_weights,
    write_parts,
)

from clara.errors import ClaraError, reason
from clara.files.digest import sha256_of
from clara.files.writing import replace_folder

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smollm2-135m" / "gpu.yaml"
SNAPSHOT = ROOT / "snapshots" / "smollm2-135m"
PLACE = ROOT / "build" / "gpu-train"
SECONDS = 405
MOST_SECONDS = 420


def prepare(
    gguf_file: Path,
    backbone: Path,
    recipe: Path,
    start: Path,
    parts: Path,
    *,
    beside: int,
    part: int = PART,
    call: int = CALL,
) -> None:
    """Write backbone, tokenizer and data as parts.

    Args:
        gguf_file, backbone: the file, and the folder that it was converted to.
        start: snapshot to start from, which travels with the checkout; there need not be one.
        beside: bytes of the checkout, which travels in every call.
        part, call: see `gpu_parts.plan`.
    """
    from clara.backbone.digest import backbone_digest
    from clara.training.reading import read_settings

    settings = read_settings(recipe, "instruct", {})
    record: dict[str, Any] = {
        "backbone_digest": backbone_digest(str(backbone)),
        "snapshot": sums_of(start),
    }
    files = {f"backbone/{file.name}": file for file in backbone.iterdir() if file.name != WEIGHTS}
    for name, source in (("train_data", settings.train_data), ("eval_data", settings.eval_data)):
        file = Path(str(source))
        record[name] = f"data/{name}{file.suffix}"
        files[record[name]] = file
    with TemporaryDirectory() as scratch:
        packed = files[f"backbone/{PACKED}"] = Path(scratch) / PACKED
        count = pack_weights(gguf_file, backbone, packed)
        print(f"weights: {packed.stat().st_size / MIB:.1f} MiB, {count} of them in 4 and 8 bits")
        planned = write_parts(files, parts, record, beside, part=part, call=call)
    print(
        f"{parts}: {sum(planned.sizes) / MIB:.1f} MiB; calls of at most "
        f"{call / MIB:.0f} MiB with the checkout ({beside / MIB:.1f} MiB) take: {planned.calls}"
    )
    names = [f"part-{number:02}" for number in range(len(planned.sizes))]
    for number in range(planned.calls):
        chosen = names[number * planned.per_call : (number + 1) * planned.per_call]
        print(f"call {number + 1}:", *([MANIFEST] if number == 0 else []), *chosen)


def working_tree() -> int:
    """Bytes of the checkout's files that git does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in names.split("\0") if name]
    return sum(file.lstat().st_size for file in files if file.is_file())


def sums_of(folder: Path) -> dict[str, str] | None:
    """SHA-256 sums of a folder's files; None if there is no folder."""
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}


def train(parts: Path, output: Path, recipe: Path, start: Path, seconds: float) -> None:
    """Verify and join the parts, and train until `seconds` after this program began."""
    joined = parts.with_name("joined")
    manifest = join_parts(parts, joined)
    if sums_of(start) != manifest["snapshot"]:
        raise PartsError(f"{start} is not what it was when the parts were made: make them anew")
    print(f"parts verified and joined after {time.monotonic() - BEGAN:.0f} s", flush=True)
    import gpu_run

    from clara.terminal.printing import quiet_libraries

    quiet_libraries()
    ended = gpu_run.train(joined, manifest, output, recipe, start, BEGAN + seconds)
    print(f"{ended}; {time.monotonic() - BEGAN:.0f} s in all; the best adapters are in {output}")


def collect(folder: Path, start: Path) -> None:
    """Put the adapters that came back in the snapshot's place, and add a line to the log.

    The folder of a run of `make train-weights` is moved aside: it would go on from its own
    checkpoint, not from the snapshot. The log's hours are those of all runs of the stage.

    Raises:
        ValueError: `folder` does not hold what `train` wrote, nothing was trained, or the snapshot
            is no longer the one that the run started from.
    """
    import gpu_run
    import train_weights

    from clara.training.reading import read_settings

    result = _read_result(folder / gpu_run.RESULT)
    for name, digest in result["files"].items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != digest:
            what = "damaged" if file.is_file() else "missing"
            raise PartsError(f"{file} is {what}: {gpu_run.RESULT} has another sum")
    if sums_of(start) != result["start"]:
        raise PartsError(
            f"{start} is not what the run started from: another training has replaced it since, "
            "and stays"
        )
    stage = result["stage"]
    before = train_weights.logged(stage)
    taken = {
        "hours": before.hours + (result["hours"] or 0.0),
        "steps": before.steps + result["steps"],
        "positions": before.positions + (result["positions"] or 0),
    }
    source = folder / gpu_run.SNAPSHOT
    with TemporaryDirectory() as scratch:
        train_weights.restore(source, Path(scratch) / "model")
    unfinished, aside = train_weights.places_beside(start)
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    replace_folder(unfinished, start, aside)
    ended = result["ended"] or f"cut off on {result['device']}"
    train_weights.add_to_log(stage, result | taken, ended)
    settings = read_settings(train_weights.RECIPE, stage, {})
    run = Path(settings.arguments["output_dir"])
    if run.is_dir():
        places = (run.with_name(f"{run.name}.{number}") for number in itertools.count(1))
        free = next(place for place in places if not place.exists())
        run.rename(free)
        print(f"{run} is now {free}")
    print(f"{start}: adapters after {result['steps']} steps ({ended})")


def _read_result(file: Path) -> dict[str, Any]:
    try:
        result: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PartsError(f"{file}: cannot be read: {reason(error)}") from error
    moment = {"steps", "positions", "hours", "scores", "files"}
    needed = {"stage", "device", "start", "ended", *moment}
    if isinstance(result, dict) and result.get("steps") == 0:
        raise PartsError(f"{file}: no step made the adapters better; the snapshot stays as it is")
    if not isinstance(result, dict) or not needed <= result.keys():
        raise PartsError(f"{file}: is not what make gpu-train writes")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the weights on one GPU.")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="settings of the run")
    parser.add_argument("--snapshot", type=Path, default=SNAPSHOT, help="where the run starts")
    parser.add_argument("--parts", type=Path, default=PLACE / "parts", help="folder of the parts")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help=f"write parts of at most {PART // MIB} MiB")
    training = commands.add_parser("train", help="verify and join the parts, and train")
    place = os.environ.get("OUT") or PLACE / "result"
    training.add_argument("--output", type=Path, default=place, help="for the best adapters")
    training.add_argument("--seconds", type=float, default=SECONDS, help="until the end")
    collecting = commands.add_parser("collect", help="take over what came back")
    collecting.add_argument("folder", type=Path, help="what --output was")
    given = parser.parse_args(arguments)
    try:
        if given.command == "prepare":
            from clara.backbone.files import resolve_backbone
            from clara.data.factbook import smollm2_file

            file = smollm2_file()
            converted = Path(resolve_backbone(str(file)))
            prepare(
                file, converted, given.recipe, given.snapshot, given.parts, beside=working_tree()
            )
        elif given.command == "train":
            if not 0 < given.seconds <= MOST_SECONDS:
                training.error(
                    f"--seconds must be above 0 and at most {MOST_SECONDS}, got {given.seconds:g}"
                )
            train(given.parts, given.output, given.recipe, given.snapshot, given.seconds)
        else:
            collect(given.folder, given.snapshot)
    except ClaraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, nor asked for
    sys.exit(main())
