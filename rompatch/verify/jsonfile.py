"""JSON from files that people download and edit: whatever is wrong says at which byte, and what it looks like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rompatch.errors import SuiteError

_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")


def read_json(path: Path | str, expected: str = "a COUNTERFACT record, a list of records, or a rompatch suite") -> Any:
    """The JSON value in a UTF-8 file. ``NaN`` and ``Infinity`` are let through here: the field that holds one is named
    where fields are read.

    Args:
        path: the file.
        expected: what the file should hold, for the message.

    Raises:
        SuiteError: the file cannot be read, is empty, is not UTF-8, is not JSON, or ends in the middle of it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise SuiteError(
            f"The file {str(path)!r} cannot be read.",
            expected=expected,
            found=problem.strerror,
            next_step="Check the path and its permissions.",
        ) from problem
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as problem:
        found = f"a byte that is not UTF-8 at byte {problem.start:,} of {len(data):,}"
        raise _not_json(path, expected, found, "Convert it to UTF-8, or fetch it again.") from problem
    except json.JSONDecodeError as problem:
        raise _not_json(path, expected, *_what_is_wrong(data, problem)) from problem
    except (ValueError, RecursionError) as problem:
        raise _not_json(path, expected, str(problem), "Fetch the file again, or correct it.") from problem


def _not_json(path: Path | str, expected: str, found: str, next_step: str) -> SuiteError:
    return SuiteError(f"The file {str(path)!r} is not JSON.", expected=expected, found=found, next_step=next_step)


def _what_is_wrong(data: bytes, problem: json.JSONDecodeError) -> tuple[str, str]:
    """In words what was found, and what to do about it."""
    size = f"{len(data):,} bytes"
    text = problem.doc
    if not text.strip():
        return f"an empty file ({size})", "Fetch the file again."
    if text.lstrip().startswith("<"):
        return f"a web page or XML ({size})", "Fetch the data itself, not the page that links to it."
    mark = len(data) - len(text.encode())  # a byte order mark
    byte = mark + len(text[: problem.pos].encode())
    if _is_cut_off(problem):
        found = f"its end at byte {len(data):,}, in the middle of what begins at byte {byte:,} ({problem.msg})"
        return found, "It looks half downloaded: fetch the file again."
    line = f"line {problem.lineno}, column {problem.colno}"
    return f"{problem.msg} at byte {byte:,} of {len(data):,} ({line})", "Correct it there, or fetch the file again."


def _is_cut_off(problem: json.JSONDecodeError) -> bool:
    """Whether more text could still have made JSON of this."""
    rest = problem.doc[problem.pos :].strip()
    if not rest or problem.msg.startswith("Unterminated string"):
        return True
    if problem.msg.startswith("Invalid \\"):
        return len(rest) < 6  # an escape is at most \uXXXX
    return any(literal.startswith(rest) for literal in _LITERALS)
