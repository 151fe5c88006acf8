"""What a name means: ids, prefixes of ids, subjects; and what to say when it means nothing, or too much."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, func, or_, select

from rompatch.errors import AmbiguousIdError, PatchNotFoundError
from rompatch.patch import SHORT_ID
from rompatch.store import schema
from rompatch.store.members import batches
from rompatch.store.records import PatchRecord, patch_from

MIN_PREFIX = 4
"""The fewest hex digits that may stand for an id."""

_HEX = re.compile(r"[0-9a-f]{4,64}")


def subject_key(subject: str) -> str:
    """The spelling under which subjects are found: case and white space do not count."""
    return " ".join(subject.split()).casefold()


def matches(connection: Connection, name: str) -> list[PatchRecord]:
    """Every patch that *name* may mean (removed ones aside), oldest first: by id, by prefix, by subject."""
    table = schema.patches
    means = [table.c.subject_key == subject_key(name)]
    digits = name.strip().lower()
    if _HEX.fullmatch(digits):  # a range, not LIKE: SQLite's LIKE does not use the index. "g" follows "f".
        means.append((table.c.id >= digits) & (table.c.id < digits + "g"))
    query = select(table).where(or_(*means), not_removed()).order_by(table.c.created_at, table.c.id)
    return [patch_from(row) for row in connection.execute(query).mappings()]


def not_removed() -> ColumnElement[bool]:
    """That a patch is no tombstone, said so that no index is searched for it: nearly every row would be found, and the
    condition beside it finds few."""
    return func.coalesce(schema.patches.c.removed_at, "") == ""


def records_of(connection: Connection, ids: Iterable[str]) -> tuple[PatchRecord, ...]:
    """The records of those patches in canonical order, removed ones among them; unknown ids are left out."""
    table = schema.patches
    rows = [
        row
        for some in batches(ids)
        for row in connection.execute(select(table).where(table.c.id.in_(some)).order_by(table.c.id)).mappings()
    ]
    return tuple(patch_from(row) for row in rows)


def unknown(kind: str, name: str, known: Sequence[str], otherwise: str, **facts: object) -> PatchNotFoundError:
    """The error for a stack, a tag, ... of that name, which is not among those *known*."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    return PatchNotFoundError(
        f"There is no {kind} {name!r}.",
        found=f"{kind}s {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else f"no {kind} at all",
        next_step=f"Did you mean {' or '.join(map(repr, close))}?" if close else otherwise,
        suggestions=tuple(close),
        **facts,
    )


def not_found(connection: Connection, name: str) -> PatchNotFoundError:
    """The error for a name that means nothing, with similar names in it."""
    import difflib

    table = schema.patches
    query = select(table.c.id, table.c.subject).where(table.c.removed_at.is_(None))
    rows = connection.execute(query.order_by(table.c.created_at.desc())).all()  # the oldest spelling wins
    if not rows:
        return PatchNotFoundError(
            f"There is no patch {name!r}: the store has none yet.",
            next_step='Make one: `rompatch create "Eiffel Tower" "located in" Rome`.',
        )
    keys: dict[str, str] = {row.id[: max(MIN_PREFIX, len(name))]: row.id[:SHORT_ID] for row in rows}
    keys |= {subject_key(row.subject): row.subject for row in rows}
    close = [keys[key] for key in difflib.get_close_matches(subject_key(name), keys, n=3)]
    short = re.fullmatch(r"[0-9a-f]{1,3}", name.strip().lower()) is not None
    return PatchNotFoundError(
        f"There is no patch {name!r}.",
        expected=f"an id, at least {MIN_PREFIX} digits of one, or a subject" if short or not close else None,
        next_step=f"Did you mean {' or '.join(map(repr, close))}?" if close else "`rompatch list` shows them all.",
        suggestions=tuple(close),
    )


def ambiguous(name: str, found: Sequence[PatchRecord]) -> AmbiguousIdError:
    """The error for a name that means several patches; it lists them."""
    return AmbiguousIdError(
        f"{name!r} means {len(found)} patches.",
        expected="one",
        found="; ".join(patch.label for patch in found[:8]) + ("; ..." if len(found) > 8 else ""),
        next_step="Name one by more digits of its id.",
        candidates=tuple(patch.id for patch in found),
    )
