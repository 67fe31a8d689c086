"""Calls of small odd sizes on a device, compared with the CPU: what compute-sanitizer watches.

`python -m bench.small operators` calls every operator, forward and backward; `searches` searches
exactly. Exits 1 if a result is wrong or a call fails; an operator that is not there is only named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from bench.operators.case import Unavailable
from bench.printing import first_line

from . import operators, searches

Check = Callable[[torch.device], str | None]  # what is wrong on this device, if anything is
CHECKS: dict[str, Callable[[], Iterator[tuple[str, Check]]]] = {
    "operators": operators.checks,
    "searches": searches.checks,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=CHECKS)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    failed = count = 0
    for name, check in CHECKS[options.what]():
        count += 1
        try:
            problem = check(device)
        except Unavailable as missing:
            print(f"{name}: missing, {missing}", flush=True)
            continue
        except Exception as error:  # of one call: the others may work
            problem = first_line(error)
        failed += problem is not None
        print(f"{name}: {'ok' if problem is None else f'FAILED, {problem}'}", flush=True)
    said = f"{failed} of {count} {options.what} failed"
    print(said if failed else f"{count} {options.what} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
