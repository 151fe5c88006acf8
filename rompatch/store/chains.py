"""The history of one fact: every patch on a subject, when it came, was put on, taken off, replaced, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.lookup import subject_key
from rompatch.store.records import (
    FactEvent,
    PatchRecord,
    decoded,
    overridden_gates,
    patch_from,
    superseded_pairs,
)

ON, OFF = "on", "off"


class ChainVerbs:
    """The history of facts; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def fact_history(self, subject: str) -> tuple[tuple[PatchRecord, ...], tuple[FactEvent, ...]]:
        """Every patch on *subject*, removed ones among them, and what happened to them, oldest first. Reads only."""
        table = schema.patches
        query = select(table).where(table.c.subject_key == subject_key(subject)).order_by(table.c.created_at)
        with self.session.reading() as connection:
            patches = tuple(patch_from(row) for row in connection.execute(query).mappings())
            events = [event for patch in patches for event in _events(connection, patch)]
        ranks = {"create": 0, OFF: 1, ON: 2, "remove": 3}
        events.sort(key=lambda event: (event.at, event.revision or 0, ranks[event.kind], event.patch_id))
        return patches, tuple(events)


def _events(connection: Connection, patch: PatchRecord) -> Iterator[FactEvent]:
    yield FactEvent(patch.created_at, "create", patch.id, author=patch.author, message=patch.message)
    stays, revisions, stacks = schema.stack_members, schema.stack_revisions, schema.stacks
    for kind, number in ((ON, stays.c.added_in), (OFF, stays.c.removed_in)):
        same = (revisions.c.stack_id == stays.c.stack_id) & (revisions.c.number == number)
        joined = select(revisions, stacks.c.name.label("stack")).join(stays, same)
        joined = joined.join(stacks, stacks.c.id == revisions.c.stack_id).where(stays.c.patch_id == patch.id)
        for row in connection.execute(joined).mappings():
            yield _event(kind, patch.id, row)
    if patch.removed_at is not None:
        yield FactEvent(patch.removed_at, "remove", patch.id)


def _event(kind: str, patch_id: str, row: Any) -> FactEvent:
    details = decoded(row["details"], f"details of revision {row['number']} of stack {row['stack']!r}")
    pairs = superseded_pairs(details)
    others = tuple(old if kind == ON else new for new, old in pairs if patch_id == (new if kind == ON else old))
    gates = overridden_gates(details, patch_id) if kind == ON else ()
    names = ("author", "message", "reason", "action", "stack")
    about = {name: row[name] for name in names}
    return FactEvent(
        row["created_at"], kind, patch_id, revision=row["number"], others=others, overridden=gates, **about
    )
