"""Text that no edit is about, to measure drift on: one that comes with rompatch, or a file. No torch here.

The built-in text was written for this purpose: some paragraphs of everyday prose (a story, instructions, a report, a
dialogue) without names that anyone would edit. It is small, so that measuring takes seconds; a team that knows what its
model is for names a text of its own.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rompatch.errors import SuiteError

BUILT_IN = "the built-in text"
"""What reports call it."""

DRIFT_TOKENS = 16_384
"""Tokens that are read of a file: perplexity hardly moves with more."""

_CHARACTERS = 16 * DRIFT_TOKENS
_EXPECTED = "a file of plain text in UTF-8"


def built_in_text() -> str:
    """The text that comes with rompatch, some 800 words."""
    return resources.files("rompatch.verify").joinpath("held_out.txt").read_text(encoding="utf-8")


def read_text(path: Path | str) -> str:
    """The beginning of a text file: more than :data:`DRIFT_TOKENS` tokens of any language that is not noise.

    Raises:
        SuiteError: it cannot be read, is not UTF-8, or has no text in it.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(_CHARACTERS)
    except OSError as problem:
        raise _unusable(path, problem.strerror, "Check the path and its permissions.") from problem
    except UnicodeDecodeError as problem:
        raise _unusable(path, "bytes that are no UTF-8", "Convert it to UTF-8.") from problem
    if not text.strip():
        raise _unusable(path, "no text in it", "Name a file with some paragraphs of ordinary text.")
    if "\0" in text:
        raise _unusable(path, "a binary file", "Name a file of plain text.")
    return text


def _unusable(path: Path | str, found: str | None, next_step: str) -> SuiteError:
    return SuiteError(
        f"Drift cannot be measured on {str(path)!r}.", expected=_EXPECTED, found=found, next_step=next_step
    )
