"""Rows of stacks and their revisions: found, written, and made records of. A revision is only ever added."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select, update

from rompatch.errors import PatchNotFoundError, StaleStackError, StoreError
from rompatch.patch import canonical_json
from rompatch.store import schema
from rompatch.store.engine import insert_row
from rompatch.store.lookup import unknown
from rompatch.store.members import changes, member_ids, write_changes
from rompatch.store.patches import now
from rompatch.store.records import ACTIONS, RevisionRecord, StackRecord, decoded

_STACK_NAME = re.compile(r"\w[\w.+-]{0,99}")


def check_stack_name(name: str) -> None:
    """Whether a stack can be called *name*.

    Raises:
        StoreError: no stack can.
    """
    if not _STACK_NAME.fullmatch(name):
        raise StoreError(
            f"No stack can be called {name!r}.",
            expected="up to 100 letters, digits, '.', '_', '+', '-'",
            next_step="Choose another name.",
        )


def name_of(stack: StackRecord | str) -> str:
    """The name of a stack that is given by its name or record."""
    return stack if isinstance(stack, str) else stack.name


def stack_row(connection: Connection, name: str) -> Any:
    """The row of the stack of that name.

    Raises:
        PatchNotFoundError: there is none; similar names are suggested.
    """
    row = connection.execute(select(schema.stacks).where(living(name))).mappings().first()
    if row is None:
        names = connection.scalars(
            select(schema.stacks.c.name).where(schema.stacks.c.removed_at.is_(None)).order_by(schema.stacks.c.name)
        ).all()
        raise unknown("stack", name, names, "`rompatch stack list` shows them.", stack=name)
    return row


def living(name: str) -> ColumnElement[bool]:
    """The condition that a row of ``stacks`` is the stack *name* and not one of that name that was removed."""
    return and_(schema.stacks.c.name == name, schema.stacks.c.removed_at.is_(None))


def stack_record(row: Any) -> StackRecord:
    """The record of a row of ``stacks``."""
    return StackRecord(name=row["name"], base_id=row["base_id"], revision=row["revision"])


def check_revision(stack: Any, number: int | None) -> None:
    """Whether the stack of the row *stack* has a revision *number*; None is the newest, which each has.

    Raises:
        PatchNotFoundError: it has none.
    """
    if number is not None and not 0 <= number <= stack["revision"]:
        raise PatchNotFoundError(
            f"Stack {stack['name']!r} has no revision {number}.",
            expected=f"0 to {stack['revision']}",
            next_step="`rompatch stack log` lists them.",
        )


def insert_revision(
    connection: Connection, stack_id: int, number: int, details: Mapping[str, Any] | None, **about: str | None
) -> int:
    """Add the row of a revision; its key. *about* are action, author, message and reason. Writes.

    Raises:
        StoreError: the action is none of :data:`~rompatch.store.records.ACTIONS`, or *details* are no JSON object.
    """
    if about["action"] not in ACTIONS:
        raise StoreError(f"{about['action']!r} is no action of a revision.", expected=", ".join(sorted(ACTIONS)))
    try:
        text = canonical_json(dict(details or {}))
    except (ValueError, TypeError) as error:
        raise StoreError(f"The details of the revision cannot be recorded: {error}.") from error
    parent = number - 1 if number else None
    row = {"stack_id": stack_id, "number": number, "parent": parent, "created_at": now(), "details": text, **about}
    return insert_row(connection, schema.stack_revisions, row)


def commit_revision(
    connection: Connection,
    row: Any,
    added: Collection[str],
    removed: Collection[str],
    details: Mapping[str, Any] | None,
    **about: str | None,
) -> RevisionRecord:
    """Make the revision that follows the one in *row* (of :func:`stack_row`). Writes.

    Args:
        added, removed: full ids; that they may be is checked before.
        details, about: as for :func:`insert_revision`.

    Raises:
        StaleStackError: another program made that revision meanwhile.
        StoreError: as for :func:`insert_revision`.
    """
    number = row["revision"] + 1
    table = schema.stacks
    # The second condition matters on databases without BEGIN IMMEDIATE, where two writers may read the same number.
    moved = update(table).where(table.c.id == row["id"], table.c.revision == row["revision"])
    if connection.execute(moved.values(revision=number)).rowcount != 1:
        raise StaleStackError(f"Stack {row['name']!r} was changed meanwhile.", next_step="Try again.")
    revision_id = insert_revision(connection, row["id"], number, details, **about)
    write_changes(connection, row["id"], number, added, removed)
    found = select(schema.stack_revisions).where(schema.stack_revisions.c.id == revision_id)
    return revision_record(connection, row["name"], connection.execute(found).mappings().one())


def revision_record(connection: Connection, stack: str, row: Any, members: set[str] | None = None) -> RevisionRecord:
    """The record of a row of ``stack_revisions`` of the stack *stack*; *members* None: they are read."""
    added, removed = changes(connection, row["stack_id"], row["number"])
    names = ("number", "parent", "created_at", "author", "action", "message", "reason")
    return RevisionRecord(
        stack=stack,
        **{name: row[name] for name in names},
        members=member_ids(connection, row["stack_id"], row["number"]) if members is None else tuple(sorted(members)),
        added=added,
        removed=removed,
        details=decoded(row["details"], f"details of revision {row['number']} of stack {stack!r}"),
    )
