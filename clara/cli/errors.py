"""Errors on the command line: one line on standard error and an exit status, no traceback.

The exit status is 1 for input with bad content, 2 for bad usage and 130 for an interrupt. An
unexpected error is a bug and keeps its traceback. It is no error if the reader of standard output
stops early, as `head` does.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from clara.cli.streams import output_failure, output_is_needed
from clara.errors import ClaraError
from clara.terminal.printing import one_line

BAD_CONTENT = 1
BAD_USAGE = 2
INTERRUPTED = 130


class CommandError(ClaraError):
    """Input that a command cannot work with; the message is for the user."""

    def __init__(self, message: str, code: int = BAD_CONTENT) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def user_errors() -> Iterator[None]:
    """Report a ValueError of what is called here: its arguments came from the user."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from error


class Group(TyperGroup):
    """Commands whose errors are reported as the module's description says."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if error is output_failure():
                raise typer.Exit from error
            code = _expected(error)
            if code is None or ctx.params.get("debug"):
                raise
            _report(_message(error))
            raise typer.Exit(code) from error

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            result = super().main(*args, **{**extra, "standalone_mode": False})
            sys.stdout.flush()  # of --version and --help, which invoke nothing
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except (OSError, SystemExit):  # click exits where a pipe is closed
            if output_failure() is None:
                raise
            result = 0
        except Exception as error:
            # What typer raises for bad usage is click's, or its own copy of that.
            if not hasattr(error, "format_message"):
                raise
            message = error.format_message().rstrip(".") or "Missing command"
            _report(f"{message} (see '{_command_path(error)} --help')")
            sys.exit(BAD_USAGE)
        sys.exit(_status(result if isinstance(result, int) else 0))


def _status(code: int) -> int:
    """The exit status, which says so if output that was asked for is lost."""
    failure = output_failure()
    if failure is None or failure.errno == errno.EPIPE:
        return code
    print(f"error: standard output could not be written: {failure.strerror}", file=sys.stderr)
    return code or (BAD_CONTENT if output_is_needed() else 0)


def _expected(error: Exception) -> int | None:
    """The exit status for an error that the user can do something about, else None."""
    if isinstance(error, ClaraError):
        return error.code if isinstance(error, CommandError) else BAD_CONTENT
    if isinstance(error, OSError):
        return None if error.errno == errno.EPIPE else BAD_CONTENT
    if isinstance(error, ModuleNotFoundError):
        ours = (error.name or "clara").startswith("clara")
        return None if ours else BAD_CONTENT
    return BAD_CONTENT if type(error).__name__ == "OutOfMemoryError" else None


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the package {error.name}, which is not installed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory on the device; use a smaller --batch-tokens: {error}"
    return str(error) or type(error).__name__


def _command_path(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return "clara" if context is None else str(context.command_path)


def _report(message: str) -> None:
    print(f"error: {one_line(message)}", file=sys.stderr)
