"""Who made a change, as the ledger records it."""

from __future__ import annotations

import getpass
import os

VARIABLE = "ROMPATCH_AUTHOR"


def author() -> str | None:
    """``ROMPATCH_AUTHOR``, else the login name, else None."""
    named = os.environ.get(VARIABLE)
    if named:
        return named
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None
