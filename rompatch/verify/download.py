"""One file from a web server into the cache: whole or not at all, continued where it broke off. Imports no torch."""

from __future__ import annotations

import errno
import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rompatch import __version__
from rompatch.default_model import CACHE_VARIABLE, Progress, file_sha256
from rompatch.errors import DownloadError
from rompatch.folders import sync_folder

try:
    import fcntl

    HAVE_LOCKS = True
except ImportError:  # Windows: two processes that fetch the same file may both fetch it
    HAVE_LOCKS = False

TIMEOUT = 30.0
"""Seconds that a server may be silent."""

ATTEMPTS = 3
"""Connections that may break off in one call; the next call goes on from there."""

_PIECE = 1 << 16
_RETRIED = (408, 429, 500, 502, 503, 504)


class _BrokenOffError(Exception):
    """The connection ended early; what arrived is kept."""


def download(url: str, target: Path, note: Progress, sha256: str | None = None) -> None:
    """Fetch *url* to *target*, replacing what is there. What arrived of a broken download stays beside it as a hidden
    ``.part`` file, and the next call goes on from there if the server still has the same file.

    Args:
        url: http or https.
        sha256: what the file must have; None: anything that is not a web page.

    Raises:
        DownloadError: no network, no such file, a web page instead of it, broken off too often, a wrong hash, or no
            space. Says the URL and where to put the file by hand.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"{url} cannot be fetched.", expected="an http:// or https:// address, or a local file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, note) as waited:
            if waited and target.is_file():
                return  # the other process has just fetched it
            part = _hidden(target, "part")
            note(f"downloading {url}")
            _fetch_patiently(url, part, target, note)
            if sha256 is not None and (found := file_sha256(part)) != sha256:
                _forget(part)
                raise DownloadError(
                    f"The file at {url} is not the expected one; it was not used.",
                    expected=f"sha256 {sha256}",
                    found=f"sha256 {found}",
                    next_step="Check the address, or leave the hash out.",
                )
            os.replace(part, target)
            _forget(part)
            sync_folder(target.parent)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DownloadError(
            f"The file at {url} could not be stored in {target.parent}.",
            expected="enough space" if full else "a folder that can be written to",
            found=problem.strerror or str(problem),
            next_step=f"Make room there, or name another folder in {CACHE_VARIABLE}.",
        ) from problem


def _fetch_patiently(url: str, part: Path, target: Path, note: Progress) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _fetch(url, part, target)
        except _BrokenOffError as problem:
            arrived = part.stat().st_size if part.exists() else 0
            if attempt == ATTEMPTS:
                raise _failed(url, target, f"{problem} ({arrived:,} bytes are kept)", again=True) from problem
            note(f"the connection broke off after {arrived:,} bytes; going on")
        else:
            return


def _fetch(url: str, part: Path, target: Path) -> None:
    """One connection: append to *part* what is missing of it, or begin anew.

    Raises:
        _BrokenOffError: it ended early, or the server asks to try again.
        DownloadError: trying again is no use.
    """
    validator = _validator(part)
    offset = part.stat().st_size if validator and part.exists() else 0
    headers = {"User-Agent": f"rompatch/{__version__}", "Accept-Encoding": "identity"}
    if offset and validator:
        # If the file has changed since, the server sends the whole new one.
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http(s) only: download() has checked
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - the same
            _receive(url, response, part, offset, target)
    except urllib.error.HTTPError as problem:
        with problem:
            if problem.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                _forget(part)
                raise _BrokenOffError("the server no longer has that part") from problem
            said = f"HTTP {problem.code} {problem.reason}"
            if problem.code in _RETRIED:
                raise _BrokenOffError(said) from problem
            raise _failed(url, target, said) from problem
    except urllib.error.URLError as problem:
        raise _failed(url, target, f"no connection: {problem.reason}", again=True) from problem
    except (http.client.InvalidURL, ValueError) as problem:
        raise _failed(url, target, f"no usable address: {problem}") from problem
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as problem:
        raise _BrokenOffError(f"the connection broke off: {type(problem).__name__}") from problem


def _receive(url: str, response: Any, part: Path, offset: int, target: Path) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _failed(url, target, "a web page instead of a file")
    resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
    if resumed and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-"):
        _forget(part)
        raise _BrokenOffError("the server sent another part than it was asked for")
    start = offset if resumed else 0
    length = response.headers.get("Content-Length")
    if not resumed:
        _forget(part)
        _remember(part, response.headers)
    with part.open("ab" if resumed else "wb") as file:
        while piece := response.read(_PIECE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    if length is not None and size != start + int(length):
        raise _BrokenOffError(f"the connection broke off at byte {size:,} of {start + int(length):,}")


def _failed(url: str, target: Path, found: str, *, again: bool = False) -> DownloadError:
    return DownloadError(
        f"The file at {url} did not arrive.",
        expected="the file",
        found=found,
        next_step=("Try again, or fetch" if again else "Check the address, or fetch")
        + f" it on another machine and put it at {target}. A local file can be named instead of the address.",
        url=url,
        path=target,
    )


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _validator(part: Path) -> str | None:
    """What tells the server which version of the file *part* begins; None if that is not known."""
    try:
        found = json.loads(_validator_file(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _remember(part: Path, headers: Any) -> None:
    """Weak tags (W/) do not identify bytes, so they cannot join two parts."""
    tag = str(headers.get("ETag", ""))
    validator = tag if tag.startswith('"') else headers.get("Last-Modified")
    if validator:
        _validator_file(part).write_text(json.dumps(str(validator)), encoding="utf-8")


def _forget(part: Path) -> None:
    for path in (part, _validator_file(part)):
        path.unlink(missing_ok=True)


@contextmanager
def _alone(target: Path, note: Progress) -> Iterator[bool]:
    """Wait until no other process fetches *target*; whether there was one. The lock goes with its process."""
    if not HAVE_LOCKS:
        yield False
        return
    descriptor = os.open(_hidden(target, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
    waited = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            note("another process is fetching the same file; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield waited
    finally:
        os.close(descriptor)
