"""The ledger's verbs on stacks and their revisions: made, chosen, removed, looked at."""

from __future__ import annotations

from sqlalchemy import select, update

from rompatch.errors import ConflictError
from rompatch.store import schema
from rompatch.store.engine import insert_row
from rompatch.store.members import member_ids, staying
from rompatch.store.patches import PatchVerbs, now
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord, patch_from
from rompatch.store.runs import SettingVerbs
from rompatch.store.stack_rows import (
    check_revision,
    check_stack_name,
    commit_revision,
    insert_revision,
    living,
    name_of,
    revision_record,
    stack_record,
    stack_row,
)

ACTIVE_STACK = "active_stack"
"""The setting that names the stack in force."""


class StackVerbs(PatchVerbs, SettingVerbs):
    """Verbs on stacks; part of :class:`~rompatch.store.ledger.Ledger`. A stack is named by its name or record."""

    def create_stack(
        self,
        name: str,
        base: str,
        *,
        author: str | None = None,
        message: str | None = None,
        reason: str | None = None,
    ) -> StackRecord:
        """A new empty stack on the base of id *base*. Writes. The first stack of a ledger becomes the active one.

        Raises:
            ConflictError: a stack of that name exists, or the base is unknown.
            StoreError: no stack can be called so.
        """
        check_stack_name(name)
        with self.session.writing() as connection:
            if connection.execute(select(schema.stacks.c.id).where(living(name))).first():
                raise ConflictError(f"A stack {name!r} exists already.", next_step="Choose another name, or use it.")
            row = {"name": name, "base_id": base, "revision": 0}
            stack_id = insert_row(connection, schema.stacks, row)
            about = {"action": "create", "author": author, "message": message, "reason": reason}
            insert_revision(connection, stack_id, 0, None, **about)
            if self.active_stack() is None and len(self.stacks()) == 1:
                self.set_active_stack(name)
        return self.stack(name)

    def stack(self, name: str) -> StackRecord:
        """The stack of that name. Reads only.

        Raises:
            PatchNotFoundError: there is none.
        """
        with self.session.reading() as connection:
            return stack_record(stack_row(connection, name))

    def stacks(self) -> tuple[StackRecord, ...]:
        """Every stack that was not removed, by name. Reads only."""
        table = schema.stacks
        with self.session.reading() as connection:
            query = select(table).where(table.c.removed_at.is_(None)).order_by(table.c.name)
            rows = connection.execute(query).mappings()
            return tuple(stack_record(row) for row in rows)

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

    def drop_stack(
        self,
        name: str,
        *,
        force: bool = False,
        author: str | None = None,
        message: str | None = None,
        reason: str | None = None,
    ) -> RevisionRecord:
        """Remove a stack: a last revision takes everything off, and its name is free for another. Writes.

        Its revisions stay in the log. Without *force* only an empty stack that is not active goes; with it none may be
        active afterwards.

        Raises:
            ConflictError: it is active, or has patches, and not *force*.
            PatchNotFoundError: there is none of that name.
        """
        with self.session.writing() as connection:
            row = stack_row(connection, name)
            members = member_ids(connection, row["id"])
            is_active = self.setting(ACTIVE_STACK) == name
            if not force and (is_active or members):
                found = ["it is the active stack"] if is_active else []
                if members:
                    found.append(f"it has {len(members)} patch{'es' if len(members) > 1 else ''}")
                raise ConflictError(
                    f"Stack {name!r} was not removed.",
                    found=" and ".join(found),
                    next_step="Say --force, or choose another stack first: `rompatch stack use NAME`.",
                )
            about = {"action": "drop", "author": author, "message": message, "reason": reason}
            revision = commit_revision(connection, row, (), members, None, **about)
            table = schema.stacks
            connection.execute(update(table).where(table.c.id == row["id"]).values(removed_at=now()))
            if is_active:
                self.set_setting(ACTIVE_STACK, None)
        return revision

    def members(self, stack: StackRecord | str, revision: int | None = None) -> tuple[PatchRecord, ...]:
        """The patches of a stack's current (or an older) revision in canonical order, by id. Reads only.

        An older revision may name patches that were removed since: their records have ``removed_at`` set.

        Raises:
            PatchNotFoundError: no such stack or revision.
        """
        with self.session.reading() as connection:
            row = stack_row(connection, name_of(stack))
            check_revision(row, revision)
            query = (
                select(schema.patches)
                .join(schema.stack_members, schema.stack_members.c.patch_id == schema.patches.c.id)
                .where(staying(row["id"], revision))
                .order_by(schema.patches.c.id)
            )
            return tuple(patch_from(patch) for patch in connection.execute(query).mappings())

    def member_ids(self, stack: StackRecord | str, revision: int | None = None) -> tuple[str, ...]:
        """The ids of :meth:`members` without their records: much quicker on a large stack. Reads only.

        Raises:
            PatchNotFoundError: no such stack or revision.
        """
        with self.session.reading() as connection:
            row = stack_row(connection, name_of(stack))
            check_revision(row, revision)
            return member_ids(connection, row["id"], revision)

    def revision(self, stack: StackRecord | str, number: int) -> RevisionRecord:
        """One revision of a stack. Reads only.

        Raises:
            PatchNotFoundError: no such stack or revision.
        """
        table = schema.stack_revisions
        with self.session.reading() as connection:
            row = stack_row(connection, name_of(stack))
            check_revision(row, number)
            found = select(table).where(table.c.stack_id == row["id"], table.c.number == number)
            return revision_record(connection, row["name"], connection.execute(found).mappings().one())

    def revisions(
        self, stack: StackRecord | str, *, limit: int | None = None, offset: int = 0
    ) -> tuple[RevisionRecord, ...]:
        """The revisions of a stack, newest first, so many if asked. Reads only."""
        table = schema.stack_revisions
        with self.session.reading() as connection:
            row = stack_row(connection, name_of(stack))
            query = select(table).where(table.c.stack_id == row["id"]).order_by(table.c.number.desc())
            found = connection.execute(query.limit(limit).offset(offset)).mappings().all()
            members = set(member_ids(connection, row["id"], found[0]["number"])) if found else set()
            records = []
            for item in found:  # downwards, each from the one after it: members are read once
                records.append(revision_record(connection, row["name"], item, members))
                members = members.difference(records[-1].added).union(records[-1].removed)
            return tuple(records)
