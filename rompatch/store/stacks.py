"""The ledger's verbs on stacks: every change is one new numbered revision that lists all its members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update

from rompatch.errors import ConflictError, PatchNotFoundError
from rompatch.store import schema
from rompatch.store.engine import insert_row
from rompatch.store.patches import PatchVerbs, now
from rompatch.store.plan import check_pop, check_push
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord, patch_from
from rompatch.store.runs import SettingVerbs

ACTIVE_STACK = "active_stack"
"""The setting that names the stack in force."""


class StackVerbs(PatchVerbs, SettingVerbs):
    """Verbs on stacks; part of :class:`~rompatch.store.ledger.Ledger`. A stack is named by its name or record."""

    def create_stack(
        self, name: str, base: str, *, author: str | None = None, message: str | None = None
    ) -> StackRecord:
        """A new empty stack on the base of id *base*. Writes. The first stack of a ledger becomes the active one.

        Raises:
            ConflictError: a stack of that name exists, or the base is unknown.
        """
        with self.session.writing() as connection:
            if connection.execute(select(schema.stacks.c.id).where(schema.stacks.c.name == name)).first():
                raise ConflictError(f"A stack {name!r} exists already.", next_step="Choose another name, or use it.")
            row = {"name": name, "base_id": base, "revision": 0}
            stack_id = insert_row(connection, schema.stacks, row)
            _insert_revision(connection, stack_id, 0, (), action="create", author=author, message=message)
            if self.active_stack() is None:
                self.set_active_stack(name)
        return self.stack(name)

    def stack(self, name: str) -> StackRecord:
        """The stack of that name. Reads only.

        Raises:
            PatchNotFoundError: there is none.
        """
        with self.session.reading() as connection:
            return _record(_stack_row(connection, name))

    def stacks(self) -> tuple[StackRecord, ...]:
        """Every stack, by name. Reads only."""
        with self.session.reading() as connection:
            rows = connection.execute(select(schema.stacks).order_by(schema.stacks.c.name)).mappings()
            return tuple(_record(row) for row in rows)

    def active_stack(self) -> StackRecord | None:
        """The stack in force, None before the first one. Reads only."""
        with self.session.reading():
            name = self.setting(ACTIVE_STACK)
            return None if name is None else self.stack(str(name))

    def set_active_stack(self, name: str) -> StackRecord:
        """Put the stack *name* in force. Writes.

        Raises:
            PatchNotFoundError: there is none of that name.
        """
        with self.session.writing():
            record = self.stack(name)
            self.set_setting(ACTIVE_STACK, name)
        return record

    def members(self, stack: StackRecord | str, revision: int | None = None) -> tuple[PatchRecord, ...]:
        """The patches of a stack's current (or an older) revision in canonical order, by id. Reads only.

        An older revision may name patches that were removed since: their records have ``removed_at`` set.

        Raises:
            PatchNotFoundError: no such stack or revision.
        """
        with self.session.reading() as connection:
            row = _stack_row(connection, _name(stack))
            number = row["revision"] if revision is None else revision
            revision_id = _revision_id(connection, row, number)
            query = (
                select(schema.patches)
                .join(schema.stack_members, schema.stack_members.c.patch_id == schema.patches.c.id)
                .where(schema.stack_members.c.revision_id == revision_id)
                .order_by(schema.patches.c.id)
            )
            return tuple(patch_from(patch) for patch in connection.execute(query).mappings())

    def push(
        self,
        stack: StackRecord | str,
        patch_ids: Sequence[str],
        *,
        message: str | None = None,
        reason: str | None = None,
        author: str | None = None,
        expected_revision: int | None = None,
    ) -> RevisionRecord:
        """Make patches active, all or none, as one new revision. Writes.

        Raises:
            ConflictError: one is active already or contradicts an active one, or the stack is no longer at
                *expected_revision*.
            BaseMismatchError: one belongs to another base.
            PatchNotFoundError: an unknown or removed patch, or no such stack.
        """
        with self.session.writing() as connection:
            row = self._row_at(connection, stack, expected_revision)
            members = self.members(row["name"])
            check_push(_record(row), members, [self.patch(patch_id) for patch_id in patch_ids])
            after = {patch.id for patch in members} | set(patch_ids)
            return self._commit(connection, row, after, action="apply", message=message, reason=reason, author=author)

    def pop(
        self,
        stack: StackRecord | str,
        patch_ids: Sequence[str],
        *,
        message: str | None = None,
        reason: str | None = None,
        author: str | None = None,
        expected_revision: int | None = None,
    ) -> RevisionRecord:
        """Make patches inactive, all or none, as one new revision. Writes.

        Raises:
            ConflictError: one is not active, or the stack is no longer at *expected_revision*.
            PatchNotFoundError: no such stack.
        """
        with self.session.writing() as connection:
            row = self._row_at(connection, stack, expected_revision)
            before = {patch.id for patch in self.members(row["name"])}
            check_pop(_record(row), before, patch_ids)
            after = before - set(patch_ids)
            return self._commit(connection, row, after, action="revert", message=message, reason=reason, author=author)

    def clear(
        self,
        stack: StackRecord | str,
        *,
        message: str | None = None,
        reason: str | None = None,
        author: str | None = None,
        expected_revision: int | None = None,
    ) -> RevisionRecord:
        """Make every patch of a stack inactive as one new revision. Writes.

        Raises:
            ConflictError: none is active, or the stack is no longer at *expected_revision*.
            PatchNotFoundError: no such stack.
        """
        with self.session.writing() as connection:
            row = self._row_at(connection, stack, expected_revision)
            if not self.members(row["name"]):
                raise ConflictError(f"Stack {row['name']!r} has no active patch, so there is nothing to revert.")
            return self._commit(connection, row, (), action="clear", message=message, reason=reason, author=author)

    def revisions(self, stack: StackRecord | str) -> tuple[RevisionRecord, ...]:
        """Every revision of a stack, newest first. Reads only."""
        table = schema.stack_revisions
        with self.session.reading() as connection:
            row = _stack_row(connection, _name(stack))
            found = connection.execute(select(table).where(table.c.stack_id == row["id"]).order_by(table.c.number))
            return tuple(_revision_record(connection, row["name"], item) for item in found.mappings())[::-1]

    def _row_at(self, connection: Connection, stack: StackRecord | str, expected: int | None) -> Any:
        row = _stack_row(connection, _name(stack))
        if expected is not None and row["revision"] != expected:
            raise ConflictError(
                f"Stack {row['name']!r} was changed meanwhile.",
                expected=f"revision {expected}",
                found=f"revision {row['revision']}",
                next_step="Look at it with `rompatch log`, then try again.",
            )
        return row

    def _commit(self, connection: Connection, row: Any, members: Iterable[str], **about: str | None) -> RevisionRecord:
        number = row["revision"] + 1
        table = schema.stacks
        # The second condition matters on databases without BEGIN IMMEDIATE, where two writers may read the same number.
        moved = update(table).where(table.c.id == row["id"], table.c.revision == row["revision"])
        if connection.execute(moved.values(revision=number)).rowcount != 1:
            raise ConflictError(f"Stack {row['name']!r} was changed meanwhile.", next_step="Try again.")
        revision_id = _insert_revision(connection, row["id"], number, members, **about)
        found = select(schema.stack_revisions).where(schema.stack_revisions.c.id == revision_id)
        return _revision_record(connection, row["name"], connection.execute(found).mappings().one())


def _name(stack: StackRecord | str) -> str:
    return stack if isinstance(stack, str) else stack.name


def _record(row: Any) -> StackRecord:
    return StackRecord(name=row["name"], base_id=row["base_id"], revision=row["revision"])


def _stack_row(connection: Connection, name: str) -> Any:
    row = connection.execute(select(schema.stacks).where(schema.stacks.c.name == name)).mappings().first()
    if row is None:
        names = connection.scalars(select(schema.stacks.c.name).order_by(schema.stacks.c.name)).all()
        raise PatchNotFoundError(f"There is no stack {name!r}.", found=f"stacks {names}", stack=name)
    return row


def _revision_id(connection: Connection, stack: Any, number: int) -> int:
    table = schema.stack_revisions
    found = connection.scalar(select(table.c.id).where(table.c.stack_id == stack["id"], table.c.number == number))
    if found is None:
        raise PatchNotFoundError(
            f"Stack {stack['name']!r} has no revision {number}.", expected=f"0 to {stack['revision']}"
        )
    return int(found)


def _insert_revision(
    connection: Connection, stack_id: int, number: int, members: Iterable[str], **about: str | None
) -> int:
    row = {
        "stack_id": stack_id,
        "number": number,
        "parent": number - 1 if number else None,
        "created_at": now(),
        **about,
    }
    revision_id = insert_row(connection, schema.stack_revisions, row)
    rows = [{"revision_id": revision_id, "patch_id": patch_id} for patch_id in sorted(members)]
    if rows:
        connection.execute(insert(schema.stack_members), rows)
    return revision_id


def _member_ids(connection: Connection, stack_id: int, number: int | None) -> set[str]:
    revisions, members = schema.stack_revisions, schema.stack_members
    query = (
        select(members.c.patch_id)
        .join(revisions, revisions.c.id == members.c.revision_id)
        .where(revisions.c.stack_id == stack_id, revisions.c.number == number)
    )
    return set(connection.scalars(query))


def _revision_record(connection: Connection, stack: str, row: Any) -> RevisionRecord:
    after = _member_ids(connection, row["stack_id"], row["number"])
    before = _member_ids(connection, row["stack_id"], row["parent"])
    names = ("number", "parent", "created_at", "author", "action", "message", "reason")
    return RevisionRecord(
        stack=stack,
        **{name: row[name] for name in names},
        members=tuple(sorted(after)),
        added=tuple(sorted(after - before)),
        removed=tuple(sorted(before - after)),
    )
