"""What an index survives: kills, flipped bytes, many processes at once, and a full disk.

    python -m tests.crash                                  # all of it, as `make crash-test`
    python -m tests.crash kills --kills 140 --jobs 1       # a part of it
    python -m tests.crash flips --seed 7 --folder build/crash

What fails is told with the seed, and its index stays in the folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash import crowd, full
from tests.crash.contents import Wrong
from tests.crash.flips import KINDS, Flips
from tests.crash.kills import Kills
from tests.crash.operations import OPERATIONS

_SHARES = 10  # after each of which a line is printed
_FAILURES = 20  # of each operation, on a full disk


def kills(options: argparse.Namespace, folder: Path) -> None:
    """`--kills` in all, of all operations alike."""
    chosen = options.operation or list(OPERATIONS)
    each = -(-options.kills // (len(chosen) * options.jobs))

    def session(number: int) -> Kills:
        place = folder / f"kills {number}"
        place.mkdir()
        made = Kills(place, chosen, options.seed + number)
        made.measure()
        for share in range(1, _SHARES + 1):
            left = begin + options.minutes * 60 - time.monotonic()
            made.run(dict.fromkeys(chosen, each * share // _SHARES), left)
            print(f"{place.name}: {made.killed.total():,}", flush=True)
        made.close()
        return made

    begin = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        sessions = list(pool.map(session, range(options.jobs)))
    seconds = time.monotonic() - begin
    total = sum((made.killed for made in sessions), Counter())
    print(f"{'operation':<10}{'killed':>8}{'happened':>10}{'late':>6}{'ms':>7}  tenths")
    for kind in chosen:
        late = sum(made.late[kind] for made in sessions)
        happened = sum(made.happened[kind] for made in sessions)
        moments = [sum(made.moments[kind][tenth] for made in sessions) for tenth in range(10)]
        took = max(made.durations(kind) for made in sessions) * 1000
        print(f"{kind:<10}{total[kind]:>8}{happened:>10}{late:>6}{took:>7.0f}  {moments}")
    rate = total.total() / seconds * 60
    print(f"{total.total():,} kills in {seconds:.0f} s, {rate:.0f} a minute; nothing lost or wrong")
    if total.total() < options.kills:
        raise Wrong(f"{total.total()} of {options.kills} kills in {options.minutes} minutes")


def flips(options: argparse.Namespace, folder: Path) -> None:
    """`--flips` in all, a third in each index."""

    def session(number: int) -> tuple[int, Flips]:
        made = Flips(folder, *KINDS[number], options.seed)
        each, done = -(-options.flips // len(KINDS)), 0
        try:
            for share in range(1, _SHARES + 1):
                left = begin + options.minutes * 60 - time.monotonic()
                done += made.run(each * share // _SHARES - done, left)
                print(f"flips of {KINDS[number][0]}: {done:,}", flush=True)
        except Wrong as error:
            print(f"{KINDS[number][0]}: {error}", flush=True)  # others may go on for long
            raise
        finally:
            made.close()
        return done, made

    begin = time.monotonic()
    with ThreadPoolExecutor(len(KINDS)) as pool:
        sessions = list(pool.map(session, range(len(KINDS))))
    seconds = time.monotonic() - begin
    total = sum(done for done, _ in sessions)
    print(f"{'index':<10}{'folder':<14}{'detected':>9}{'no effect':>11}{'reader ended':>14}")
    for (storage, _), (_, made) in zip(KINDS, sessions):
        for name in sorted({*made.detected, *made.without_effect, *made.died}):
            counts = made.detected[name], made.without_effect[name], made.died[name]
            one, two, three = counts
            print(f"{storage:<10}{name or 'other':<14}{one:>9}{two:>11}{three:>14}")
    named = sum(len(made.by_verify) for _, made in sessions)
    print(
        f"{total:,} flips in {seconds:.0f} s, {total / seconds:.0f} a second; all with an effect "
        f"detected and named, {named} of them by verify only"
    )
    if total < options.flips:
        raise Wrong(f"{total} of {options.flips} flips in {options.minutes} minutes")


def many(options: argparse.Namespace, folder: Path) -> None:
    """Four that add and four that read, for `--seconds`."""
    counted = crowd.run(folder, options.seconds)
    print(
        f"{counted['commits']:,} commits of 4 processes and {counted['reads']:,} reads of 4 others "
        f"in {options.seconds:.0f} s; no row lost or twice, no torn read"
    )


def disk(options: argparse.Namespace, folder: Path) -> None:
    """A disk that is full, where it can be had, and files of limited size."""
    try:
        with full.small_disk(folder) as place:
            _fill(options.seed, place, limited=False)
    except PermissionError as error:
        print(f"no full disk: {error}")
    _fill(options.seed, folder, limited=True)


def _fill(seed: int, place: Path, *, limited: bool) -> None:
    made = full.Full(place, seed, limited=limited)
    try:
        made.run(_FAILURES)
    finally:
        made.close()
    what = "files of limited size" if limited else "full disk"
    print(f"{what}: {made.failed.total()} operations failed cleanly, {made.done.total()} had room")


PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "kills": kills,
    "flips": flips,
    "many": many,
    "disk": disk,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="*", default=[], help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="to be killed")
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=120, help="of many processes at once")
    parser.add_argument("--minutes", type=float, default=60, help="for the kills, and the flips")
    parser.add_argument("--jobs", type=int, default=2, help="indexes that are killed at once")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", type=Path, help="default: a new one in the temporary folder")
    options = parser.parse_args()
    if unknown := sorted(set(options.part) - set(PARTS)):
        parser.error(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="crash-", dir=options.folder))
    print(f"seed {options.seed}", flush=True)
    for part in options.part or PARTS:
        try:
            PARTS[part](options, folder)
        except (Wrong, TimeoutError) as error:
            print(f"error: {part}, seed {options.seed}: {error}\nIts files are in {folder}")
            return 1
        sys.stdout.flush()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
