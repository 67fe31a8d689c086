"""Find models of the Hugging Face hub in the local cache or download them, and explain failures.

Without a network, the hub's own libraries retry for most of a minute, and then say that the model
is missing. This module first asks the hub one question, with a deadline.
"""

from __future__ import annotations

import glob
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    constants,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from clara.errors import ClaraError, reason
from clara.terminal.loading_bars import bars_on_a_terminal_only

FIRST_ANSWER = 6.0
"""Seconds to wait for the hub when a model is not here; `HF_HUB_ETAG_TIMEOUT`, if it is less."""
UPDATE_ANSWER = 3.0
"""Seconds to wait for the hub when the model is in the cache and may only have changed."""
_REMEMBERED = 60.0
"""Seconds for which a hub that did not answer is not asked again."""

Choose = Callable[[Sequence[str], Callable[[str], Path]], Sequence[str]]

_log = logging.getLogger(__name__)
_found: dict[tuple[str, ...], Path] = {}
_silent: dict[str, tuple[float, str]] = {}


class HubError(ClaraError, ValueError):
    """A model cannot be downloaded from the hub; the message gives the cause."""


def snapshot(
    name: str, *, choose: Choose, complete: Callable[[Path], bool], within: str = ""
) -> Path:
    """Return a local folder with files of a model on the hub, at the newest revision of `main`.

    If the hub does not answer, the model in the local cache is used. Within a process a model keeps
    its revision. `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the hub's other variables apply.

    Args:
        name: "owner/name", or "name".
        choose: from the names of all files in the model, those to download. It also gets a
            function that downloads one file and returns its path. A HubError of it completes the
            sentence that begins with the model's name.
        complete: whether a folder of the cache holds what is needed.
        within: a folder of the model that has the files; it is what is returned and completed.

    Raises:
        HubError: the model is not in the cache, and it is not on the hub, the user has no access,
            or the hub cannot be reached.
    """
    endpoint = constants.ENDPOINT
    key = (endpoint, str(constants.HF_HUB_CACHE), name, within)
    if key in _found and complete(_found[key]):
        return _found[key]
    here = _cached(name, within, complete)
    try:
        root = _current(name, here and _root(here, within), choose, endpoint)
    except _Unavailable as error:
        if here is None:
            shown = f"{name}/{within}" if within else name
            raise HubError(f"{shown!r} is not a local folder, and {error}") from error
        root = _root(here, within)
    _found[key] = root / within
    return _found[key]


class _Unavailable(Exception):
    """Why nothing comes from the hub; the rest of a sentence."""


def _cached(name: str, within: str, complete: Callable[[Path], bool]) -> Path | None:
    """Folder of the model in the local cache, if all of it is there."""
    file = f"{within}/config.json" if within else "config.json"
    try:
        found = try_to_load_from_cache(name, file, cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        return None
    if not isinstance(found, str) or not complete(Path(found).parent):
        return None
    return Path(found).parent


def _root(folder: Path, within: str) -> Path:
    return folder.parents[within.count("/")] if within else folder


def _current(name: str, here: Path | None, choose: Choose, endpoint: str) -> Path:
    """The newest revision's folder, downloaded if it is not `here`."""
    if constants.HF_HUB_OFFLINE:
        raise _Unavailable("it is not in the hub's cache on this machine (HF_HUB_OFFLINE is set)")
    if here is None:
        _log.info("looking for %s on the hub (%s)", name, endpoint)
    info = _ask(name, endpoint, UPDATE_ANSWER if here else FIRST_ANSWER)
    if here is not None and here.name == info.sha:
        return here
    sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}

    def download_one(file: str) -> Path:
        return Path(hf_hub_download(name, file, endpoint=endpoint))

    try:
        with bars_on_a_terminal_only():
            chosen = choose(sorted(sizes), download_one)
            total = sum(sizes.get(file, 0) for file in chosen)
            _log.info("downloading %s from the hub (%.1f MB)", name, total / 1e6)
            patterns = [glob.escape(file) for file in chosen]
            return Path(snapshot_download(name, allow_patterns=patterns, endpoint=endpoint))
    except HubError as error:  # what is there cannot be used
        raise HubError(f"{name!r} {error}") from error
    except Exception as error:
        if _from_hub(error):
            raise _Unavailable(_cause(error, endpoint)) from error
        raise


def _ask(name: str, endpoint: str, seconds: float) -> Any:
    """What the hub knows of a model; waits for so long, also where looking up the host hangs."""
    since, cause = _silent.get(endpoint, (-_REMEMBERED, ""))
    if time.monotonic() - since < _REMEMBERED:
        raise _Unavailable(cause)
    seconds = min(seconds, float(constants.HF_HUB_ETAG_TIMEOUT))
    answer: list[Any] = []

    def ask() -> None:
        try:
            api = HfApi(endpoint=endpoint)
            answer.append(api.model_info(name, timeout=seconds, files_metadata=True))
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # it must not hold up the end of a process
    thread.start()
    thread.join(seconds)
    result = answer[0] if answer else TimeoutError(f"no answer within {seconds:g} s")
    if not isinstance(result, Exception):
        return result
    cause = _cause(result, endpoint)
    if not isinstance(result, (HfHubHTTPError, HFValidationError)):
        _silent[endpoint] = (time.monotonic(), cause)
    raise _Unavailable(cause) from result


def _from_hub(error: Exception) -> bool:
    """Whether an error comes from the hub or the way to it."""
    module = type(error).__module__.partition(".")[0]
    return module.startswith(("huggingface_hub", "httpx", "hf_xet", "requests"))


def _cause(error: BaseException, endpoint: str) -> str:
    """Why the hub gives nothing, as the rest of a sentence."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HFValidationError):
        return "a model on the hub cannot have this name"
    if isinstance(error, GatedRepoError):
        return "on the hub it is gated: accept its terms there and log in with 'hf auth login'"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            what = "no such model on the hub" if isinstance(error, RepositoryNotFoundError) else ""
            private = "it is private: log in with 'hf auth login'"
            return f"there is {what}, or {private}" if what else f"on the hub {private}"
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return "there is no such model on the hub"
        if status == 403:
            return "the hub refuses access (403): log in as a user with access: 'hf auth login'"
        return f"the hub answered with an error ({status})"
    detail = reason(error, 120, first_line=True)
    return f"the hub cannot be reached at {endpoint} (no network?): {detail}"
