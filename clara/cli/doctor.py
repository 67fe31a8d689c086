"""`clara doctor`: check this machine."""

from __future__ import annotations

from dataclasses import asdict

from clara import __version__
from clara.cli import options
from clara.errors import ClaraError
from clara.reports.diagnosis import diagnose
from clara.reports.remedies import checks, conclusion
from clara.terminal.printing import print_json


def doctor(as_json: options.Json = False) -> None:
    """Check this machine: what works, what is missing or slow, and how to fix it."""
    report = diagnose(__version__, _cpu_dtype(), _cpu_int8())
    found = checks(report)
    if as_json:
        print_json({**report, "checks": [asdict(each) for each in found]})
        return
    for each in found:
        print(each)
    print(f"\n{conclusion(found)}")


def _cpu_int8() -> list[str]:
    """The processor's instructions for products of 8-bit integers."""
    from clara.backbone.processor import int8_instructions

    return list(int8_instructions())


def _cpu_dtype() -> dict[str, str | None]:
    """What `dtype="auto"` takes on the CPU and why; no dtype where the environment is wrong."""
    from clara.backbone.processor import cpu_dtype

    try:
        found = cpu_dtype()
    except ClaraError as error:
        return {"auto": None, "reason": str(error)}
    return {"auto": found.name, "reason": found.reason}
