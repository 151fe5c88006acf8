"""Where a fact comes from, and until when it holds."""

from __future__ import annotations

import re
from datetime import date, datetime, timezone

from rompatch.errors import RequestError
from rompatch.store.records import PatchRecord


def checked_expiry(text: str | None) -> str | None:
    """*text* if it is a day, ``YYYY-MM-DD``. From that day on (UTC) the patch counts as expired.

    Raises:
        RequestError: it is none.
    """
    if text is None:
        return None
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise RequestError(f"{text!r} is no day.", expected="YYYY-MM-DD", next_step="Write it like --expires 2027-01-31.")


def today() -> str:
    """This day in UTC, as the ledger writes days."""
    return datetime.now(timezone.utc).date().isoformat()


def is_expired(record: PatchRecord) -> bool:
    """Whether the day has come from which on the fact may no longer hold."""
    return record.expires_at is not None and record.expires_at <= today()
