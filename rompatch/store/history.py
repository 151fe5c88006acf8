"""The ledger's log: patches made and removed, revisions, verifications, merged and newest first."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Integer, RowMapping, Select, String, cast, literal, null, select

from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.members import batches, changes
from rompatch.store.records import HistoryEvent

Changes = tuple[tuple[str, ...], tuple[str, ...]]


class HistoryVerbs:
    """The log; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def history(self, limit: int | None = 20, offset: int = 0) -> tuple[HistoryEvent, ...]:
        """What happened, newest first. Reads only."""
        wanted = None if limit is None else limit + offset
        with self.session.reading() as connection:
            # Each kind by its own index, then merged: a union in SQL would read every event of the ledger.
            parts = [connection.execute(part.limit(wanted)).mappings().all() for part in _parts()]
            merged = heapq.merge(*parts, key=_newness, reverse=True)
            rows = list(islice(merged, offset, wanted))
            changed = {row["revision_id"]: _changed(connection, row) for row in rows if row["revision_id"] is not None}
            ids = {row["patch_id"] for row in rows if row["patch_id"] is not None}
            ids.update(patch_id for both in changed.values() for some in both for patch_id in some)
            subjects = _subjects(connection, ids)
        return tuple(_event(row, changed, subjects) for row in rows)


def _newness(row: RowMapping) -> tuple[str, int, int]:
    """By time; ``rank`` orders what happened in the same microsecond."""
    return row["at"], row["rank"], row["number"] or 0


def _parts() -> list[Select[Any]]:
    """One select a kind of event, newest first, with the same columns."""
    patches, stacks = schema.patches, schema.stacks
    revisions, runs, tags = schema.stack_revisions, schema.verifications, schema.stack_tags
    text, number = cast(null(), String), cast(null(), Integer)

    def part(at: Any, kind: Any, rank: int, **columns: Any) -> Select[Any]:
        names: dict[str, Any] = dict.fromkeys(
            ("patch_id", "stack", "suite", "author", "message", "reason", "tag"), text
        )
        names |= dict.fromkeys(("number", "revision_id", "stack_id"), number)
        names |= columns
        labelled = [column.label(name) for name, column in names.items()]
        query = select(at.label("at"), kind.label("kind"), literal(rank).label("rank"), *labelled)
        return query.order_by(at.desc(), columns.get("number", columns.get("patch_id", at)).desc())

    return [
        part(
            patches.c.created_at,
            literal("create"),
            0,
            patch_id=patches.c.id,
            author=patches.c.author,
            message=patches.c.message,
        ),
        part(patches.c.removed_at, literal("remove"), 3, patch_id=patches.c.id).where(
            patches.c.removed_at.is_not(None)
        ),
        part(
            revisions.c.created_at,
            revisions.c.action,
            1,
            stack=stacks.c.name,
            author=revisions.c.author,
            message=revisions.c.message,
            reason=revisions.c.reason,
            number=revisions.c.number,
            revision_id=revisions.c.id,
            stack_id=revisions.c.stack_id,
        ).join(stacks, stacks.c.id == revisions.c.stack_id),
        part(
            tags.c.created_at,
            literal("tag"),
            1,
            stack=stacks.c.name,
            author=tags.c.author,
            message=tags.c.message,
            number=tags.c.revision,
            tag=tags.c.name,
        ).join(stacks, stacks.c.id == tags.c.stack_id),
        part(runs.c.created_at, literal("verify"), 2, patch_id=runs.c.patch_id, suite=runs.c.suite, number=runs.c.id),
    ]


def _changed(connection: Connection, row: Any) -> Changes:
    """The ids that a revision added, and those that it took off."""
    return changes(connection, row["stack_id"], row["number"])


def _subjects(connection: Connection, ids: set[str]) -> dict[str, str]:
    table = schema.patches
    found: dict[str, str] = {}
    for some in batches(ids):
        query = select(table.c.id, table.c.subject).where(table.c.id.in_(some))
        found |= {row.id: row.subject for row in connection.execute(query)}
    return found


def _event(row: Any, changed: dict[int, Changes], subjects: dict[str, str]) -> HistoryEvent:
    is_revision = row["revision_id"] is not None
    added, removed = changed[row["revision_id"]] if is_revision else ((), ())
    single = () if row["patch_id"] is None else (row["patch_id"],)
    ids = tuple(sorted({*added, *removed})) if is_revision else single
    return HistoryEvent(
        at=row["at"],
        kind="stack" if is_revision and row["kind"] == "create" else row["kind"],
        patch_ids=ids,
        subjects=tuple(subjects.get(patch_id, "?") for patch_id in ids),
        added=added,
        removed=removed,
        stack=row["stack"],
        revision=row["number"] if is_revision or row["kind"] == "tag" else None,
        verification=row["number"] if row["kind"] == "verify" else None,
        suite=row["suite"],
        author=row["author"],
        message=row["message"],
        reason=row["reason"],
        tag=row["tag"],
    )
