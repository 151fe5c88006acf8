"""The fields that a file of facts may have, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from rompatch.errors import RequestError

REQUIRED = ("subject", "object")
EITHER = ("relation", "prompt")
OPTIONAL = ("true", "message", "source", "expires")
NAMES = ("id", "name")
"""What a person calls the fact; one of them."""

IGNORED = ("error",)
"""What files of failed facts say about each."""

KNOWN = (*REQUIRED, *EITHER, *OPTIONAL, *NAMES, *IGNORED)


def check_columns(where: str, names: Sequence[str]) -> Sequence[str]:
    """The CSV header *names*, if it is one.

    Raises:
        RequestError: a name is unknown, missing, empty, or there twice.
    """
    if not set(names) & {*REQUIRED, *EITHER}:
        raise RequestError(
            f"The first line of {where!r} is no header.",
            expected=f"names of columns: {', '.join(KNOWN[:6])}",
            found=", ".join(names)[:80],
            next_step="Put `subject,relation,object` above the facts, or what their columns are.",
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(
            f"The header of {where!r} has the column {twice[0]!r} twice.", expected="each column once", field=twice[0]
        )
    check_names(f"the header of {where!r}", names)
    missing = [name for name in REQUIRED if name not in names]
    if not set(EITHER) & set(names):
        missing.append(" or ".join(EITHER))
    if missing:
        raise RequestError(
            f"The header of {where!r} has no column {missing[0]}.", found=", ".join(names), field=missing[0]
        )
    return names


def check_names(where: str, names: Iterable[str]) -> None:
    """Whether facts have fields of those names.

    Raises:
        RequestError: not of all of them; the nearest known name is suggested.
    """
    names = list(names)
    for name in names:
        if name not in KNOWN:
            close = difflib.get_close_matches(name.strip().casefold(), KNOWN, n=1)
            raise RequestError(
                f"There is no field {name[:40]!r}, which {where} has.",
                expected=", ".join(KNOWN),
                next_step=f"Did you mean {close[0]!r}?" if close else "Leave it out.",
                field=name[:40],
            )
    if set(NAMES) <= set(names):
        raise RequestError(f"Both {' and '.join(NAMES)} are in {where}.", expected="one of them", field=NAMES[1])
