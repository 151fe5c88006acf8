"""Who is on a stack: one row a stay, from the revision that added a patch to the one that took it off.

A revision writes as many rows as it changes, so a stack of 1,000 patches grows by one row when one is applied; a row
is only ever added, and closed once. Members at any revision are one query.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from sqlalchemy import ColumnElement, Connection, Select, and_, insert, or_, select, update

from rompatch.store import schema

BATCH = 500
"""Values in one statement at most; SQLite bounds them."""

_STAYS = schema.stack_members


def batches(values: Iterable[str]) -> Iterator[list[str]]:
    """*values* in sorted lists of :data:`BATCH` at most."""
    ordered = sorted(values)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def staying(stack_id: int, revision: int | None = None) -> ColumnElement[bool]:
    """The condition that a row of ``stack_members`` is in force at *revision*, or now."""
    if revision is None:
        return and_(_STAYS.c.stack_id == stack_id, _STAYS.c.removed_in.is_(None))
    until = or_(_STAYS.c.removed_in.is_(None), _STAYS.c.removed_in > revision)
    return and_(_STAYS.c.stack_id == stack_id, _STAYS.c.added_in <= revision, until)


def member_ids(connection: Connection, stack_id: int, revision: int | None = None) -> tuple[str, ...]:
    """The patches on a stack now, or at an older revision, in canonical order."""
    query = select(_STAYS.c.patch_id).where(staying(stack_id, revision)).order_by(_STAYS.c.patch_id)
    return tuple(connection.scalars(query))


def changes(connection: Connection, stack_id: int, number: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What one revision added and what it took off, each in canonical order."""

    def ids(condition: ColumnElement[bool]) -> tuple[str, ...]:
        query: Select[tuple[str]] = select(_STAYS.c.patch_id).where(_STAYS.c.stack_id == stack_id, condition)
        return tuple(connection.scalars(query.order_by(_STAYS.c.patch_id)))

    return ids(_STAYS.c.added_in == number), ids(_STAYS.c.removed_in == number)


def write_changes(
    connection: Connection, stack_id: int, number: int, added: Collection[str], removed: Collection[str]
) -> None:
    """Begin and end stays with revision *number*, whose own row is there already. Writes."""
    for some in batches(removed):
        ended = update(_STAYS).where(staying(stack_id), _STAYS.c.patch_id.in_(some))
        connection.execute(ended.values(removed_in=number))
    rows: Sequence[dict[str, object]] = [
        {"stack_id": stack_id, "added_in": number, "patch_id": patch_id} for patch_id in sorted(added)
    ]
    if rows:
        connection.execute(insert(_STAYS), rows)


def stacks_holding(connection: Connection, patch_id: str) -> tuple[str, ...]:
    """The names of the stacks that a patch is on now."""
    query = (
        select(schema.stacks.c.name)
        .join(_STAYS, _STAYS.c.stack_id == schema.stacks.c.id)
        .where(_STAYS.c.patch_id == patch_id, _STAYS.c.removed_in.is_(None))
        .order_by(schema.stacks.c.name)
    )
    return tuple(connection.scalars(query))
