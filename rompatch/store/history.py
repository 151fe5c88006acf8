"""The ledger's log: patches made and removed, revisions, verifications, merged and newest first."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Integer, Select, String, cast, literal, null, select, union_all

from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.members import batches, changes
from rompatch.store.records import HistoryEvent

Ids = dict[int, set[str]]


class HistoryVerbs:
    """The log; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def history(self, limit: int | None = 20, offset: int = 0) -> tuple[HistoryEvent, ...]:
        """What happened, newest first. Reads only."""
        merged = union_all(*_parts()).subquery()
        newest = (merged.c.at.desc(), merged.c.rank.desc(), merged.c.number.desc())
        query = select(merged).order_by(*newest).limit(limit).offset(offset)
        with self.session.reading() as connection:
            rows = connection.execute(query).mappings().all()
            changed = {row["revision_id"]: _changed(connection, row) for row in rows if row["revision_id"] is not None}
            ids = {row["patch_id"] for row in rows if row["patch_id"] is not None}.union(*changed.values())
            subjects = _subjects(connection, ids)
        return tuple(_event(row, changed, subjects) for row in rows)


def _parts() -> list[Select[Any]]:
    """One select a kind of event, with the same columns. ``rank`` orders what happened in the same microsecond."""
    patches, stacks = schema.patches, schema.stacks
    revisions, runs = schema.stack_revisions, schema.verifications
    text, number = cast(null(), String), cast(null(), Integer)

    def part(at: Any, kind: Any, rank: int, **columns: Any) -> Select[Any]:
        names: dict[str, Any] = dict.fromkeys(("patch_id", "stack", "suite", "author", "message"), text)
        names |= dict.fromkeys(("number", "revision_id", "stack_id"), number)
        names |= columns
        labelled = [column.label(name) for name, column in names.items()]
        return select(at.label("at"), kind.label("kind"), literal(rank).label("rank"), *labelled)

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
            number=revisions.c.number,
            revision_id=revisions.c.id,
            stack_id=revisions.c.stack_id,
        ).join(stacks, stacks.c.id == revisions.c.stack_id),
        part(runs.c.created_at, literal("verify"), 2, patch_id=runs.c.patch_id, suite=runs.c.suite, number=runs.c.id),
    ]


def _changed(connection: Connection, row: Any) -> set[str]:
    """The ids that a revision added or took off."""
    return {patch_id for some in changes(connection, row["stack_id"], row["number"]) for patch_id in some}


def _subjects(connection: Connection, ids: set[str]) -> dict[str, str]:
    table = schema.patches
    found: dict[str, str] = {}
    for some in batches(ids):
        query = select(table.c.id, table.c.subject).where(table.c.id.in_(some))
        found |= {row.id: row.subject for row in connection.execute(query)}
    return found


def _event(row: Any, changed: Ids, subjects: dict[str, str]) -> HistoryEvent:
    is_revision = row["revision_id"] is not None
    single = () if row["patch_id"] is None else (row["patch_id"],)
    ids = tuple(sorted(changed[row["revision_id"]])) if is_revision else single
    return HistoryEvent(
        at=row["at"],
        kind="stack" if is_revision and row["kind"] == "create" else row["kind"],
        patch_ids=ids,
        subjects=tuple(subjects.get(patch_id, "?") for patch_id in ids),
        stack=row["stack"],
        revision=row["number"] if is_revision else None,
        verification=row["number"] if row["kind"] == "verify" else None,
        suite=row["suite"],
        author=row["author"],
        message=row["message"],
    )
