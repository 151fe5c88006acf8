"""The ledger's verbs on stacks: every change is one new numbered revision, and nothing is rewritten."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, select, update

from rompatch.errors import ConflictError, PatchNotFoundError, StaleStackError, StoreError
from rompatch.patch import canonical_json
from rompatch.store import schema
from rompatch.store.engine import insert_row
from rompatch.store.lookup import records_of, subject_key, unknown
from rompatch.store.members import batches, changes, member_ids, staying, write_changes
from rompatch.store.patches import PatchVerbs, now
from rompatch.store.plan import check_pop, check_push
from rompatch.store.records import ACTIONS, PatchRecord, RevisionRecord, StackRecord, decoded, patch_from
from rompatch.store.runs import SettingVerbs

ACTIVE_STACK = "active_stack"
"""The setting that names the stack in force."""

_STACK_NAME = re.compile(r"\w[\w.+-]{0,99}")


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
            if connection.execute(select(schema.stacks.c.id).where(_living(name))).first():
                raise ConflictError(f"A stack {name!r} exists already.", next_step="Choose another name, or use it.")
            row = {"name": name, "base_id": base, "revision": 0}
            stack_id = insert_row(connection, schema.stacks, row)
            about = {"action": "create", "author": author, "message": message, "reason": reason}
            _insert_revision(connection, stack_id, 0, None, **about)
            if self.active_stack() is None and len(self.stacks()) == 1:
                self.set_active_stack(name)
        return self.stack(name)

    def stack(self, name: str) -> StackRecord:
        """The stack of that name. Reads only.

        Raises:
            PatchNotFoundError: there is none.
        """
        with self.session.reading() as connection:
            return _record(stack_row(connection, name))

    def stacks(self) -> tuple[StackRecord, ...]:
        """Every stack that was not removed, by name. Reads only."""
        table = schema.stacks
        with self.session.reading() as connection:
            query = select(table).where(table.c.removed_at.is_(None)).order_by(table.c.name)
            rows = connection.execute(query).mappings()
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
                found = ["it is the active stack"] * is_active + [f"it has {len(members)} patches"] * bool(members)
                raise ConflictError(
                    f"Stack {name!r} was not removed.",
                    found=" and ".join(found),
                    next_step="Say --force, or choose another stack first: `rompatch stack use NAME`.",
                )
            about = {"action": "drop", "author": author, "message": message, "reason": reason}
            revision = self._commit(connection, row, (), members, None, **about)
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
            row = stack_row(connection, _name(stack))
            _check_revision(row, revision)
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
            row = stack_row(connection, _name(stack))
            _check_revision(row, revision)
            return member_ids(connection, row["id"], revision)

    def change(
        self,
        stack: StackRecord | str,
        *,
        action: str,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        message: str | None = None,
        reason: str | None = None,
        author: str | None = None,
        details: Mapping[str, Any] | None = None,
        expected_revision: int | None = None,
    ) -> RevisionRecord:
        """Take patches off and put others on, all or none, as one new revision. Writes.

        Args:
            stack: its name or record.
            action: what the revision is called, one of :data:`~rompatch.store.records.ACTIONS`.
            add, remove: full ids. What is taken off contradicts nothing that is put on.
            message, reason, author: for the log.
            details: more about it, any JSON object.
            expected_revision: the revision that the change was planned on.

        Raises:
            ConflictError: a patch to add is active already or contradicts an active one; one to remove is not active.
            StaleStackError: the stack is no longer at *expected_revision*.
            BaseMismatchError: one belongs to another base.
            PatchNotFoundError: an unknown or removed patch, or no such stack.
        """
        with self.session.writing() as connection:
            row = self._row_at(connection, stack, expected_revision)
            if remove:
                check_pop(_record(row), member_ids(connection, row["id"]), remove)
            if add:
                new = [self.patch(patch_id) for patch_id in add]
                leaving = set(remove)
                rivals = [patch for patch in self._rivals(connection, row["id"], new) if patch.id not in leaving]
                check_push(_record(row), rivals, new)
            about = {"action": action, "message": message, "reason": reason, "author": author}
            return self._commit(connection, row, add, remove, details, **about)

    def push(self, stack: StackRecord | str, patch_ids: Sequence[str], **about: Any) -> RevisionRecord:
        """Make patches active, all or none, as one new revision; *about* as for :meth:`change`. Writes.

        Raises:
            ConflictError: none is named, or as for :meth:`change`.
            BaseMismatchError, PatchNotFoundError, StaleStackError: as for :meth:`change`.
        """
        if not patch_ids:
            raise ConflictError("No patch was named to apply.", next_step="Name one: `rompatch list` shows them.")
        return self.change(stack, add=patch_ids, **({"action": "apply"} | about))

    def pop(self, stack: StackRecord | str, patch_ids: Sequence[str], **about: Any) -> RevisionRecord:
        """Make patches inactive, all or none, as one new revision; *about* as for :meth:`change`. Writes.

        Raises:
            ConflictError: one is not active, or none is named.
            PatchNotFoundError, StaleStackError: as for :meth:`change`.
        """
        if not patch_ids:
            raise ConflictError("No patch was named to revert.", next_step="Name one, or use `rompatch revert --all`.")
        return self.change(stack, remove=patch_ids, **({"action": "revert"} | about))

    def clear(self, stack: StackRecord | str, **about: Any) -> RevisionRecord:
        """Make every patch of a stack inactive as one new revision; *about* as for :meth:`change`. Writes.

        Raises:
            ConflictError: none is active.
            PatchNotFoundError, StaleStackError: as for :meth:`change`.
        """
        with self.session.writing() as connection:
            row = self._row_at(connection, stack, about.get("expected_revision"))
            ids = member_ids(connection, row["id"])
            if not ids:
                raise ConflictError(f"Stack {row['name']!r} has no active patch, so there is nothing to revert.")
            return self.change(stack, remove=ids, **({"action": "clear"} | about))

    def rivals(self, stack: StackRecord | str, new: Sequence[PatchRecord]) -> tuple[PatchRecord, ...]:
        """The members that bear on whether *new* may join: the same patch, the same subject, or other weights of a
        site that both change. A large stack need not be read whole. Reads only.

        Raises:
            PatchNotFoundError: no such stack.
        """
        with self.session.reading() as connection:
            return self._rivals(connection, stack_row(connection, _name(stack))["id"], new)

    def revision(self, stack: StackRecord | str, number: int) -> RevisionRecord:
        """One revision of a stack. Reads only.

        Raises:
            PatchNotFoundError: no such stack or revision.
        """
        table = schema.stack_revisions
        with self.session.reading() as connection:
            row = stack_row(connection, _name(stack))
            _check_revision(row, number)
            found = select(table).where(table.c.stack_id == row["id"], table.c.number == number)
            return _revision_record(connection, row["name"], connection.execute(found).mappings().one())

    def revisions(
        self, stack: StackRecord | str, *, limit: int | None = None, offset: int = 0
    ) -> tuple[RevisionRecord, ...]:
        """The revisions of a stack, newest first, so many if asked. Reads only."""
        table = schema.stack_revisions
        with self.session.reading() as connection:
            row = stack_row(connection, _name(stack))
            query = select(table).where(table.c.stack_id == row["id"]).order_by(table.c.number.desc())
            found = connection.execute(query.limit(limit).offset(offset)).mappings().all()
            members = set(member_ids(connection, row["id"], found[0]["number"])) if found else set()
            records = []
            for item in found:  # downwards, each from the one after it: members are read once
                records.append(_revision_record(connection, row["name"], item, members))
                members = members.difference(records[-1].added).union(records[-1].removed)
            return tuple(records)

    def _rivals(self, connection: Connection, stack_id: int, new: Sequence[PatchRecord]) -> tuple[PatchRecord, ...]:
        stays, patches, sites = schema.stack_members, schema.patches, schema.sites
        here = select(stays.c.patch_id).where(staying(stack_id))
        members = set(connection.scalars(here))
        ids = {patch.id for patch in new} & members
        for some in batches({subject_key(patch.subject) for patch in new}):
            about = select(patches.c.id).where(patches.c.subject_key.in_(some), patches.c.id.in_(here))
            ids |= set(connection.scalars(about))
        hashes = {site.parameter: site.sha256 for patch in new for site in patch.header.sites}
        for some in batches(members):  # by patch: a site's name is that of nearly every patch in the ledger
            columns = (sites.c.patch_id, sites.c.parameter, sites.c.tensor_sha256)
            for patch_id, parameter, sha256 in connection.execute(select(*columns).where(sites.c.patch_id.in_(some))):
                if hashes.get(parameter, sha256) != sha256:
                    ids.add(patch_id)
        return records_of(connection, ids)

    def _row_at(self, connection: Connection, stack: StackRecord | str, expected: int | None) -> Any:
        row = stack_row(connection, _name(stack))
        if expected is not None and row["revision"] != expected:
            raise StaleStackError(
                f"Stack {row['name']!r} was changed meanwhile.",
                expected=f"revision {expected}",
                found=f"revision {row['revision']}",
                next_step="Look at it with `rompatch stack log`, then try again.",
                stack=row["name"],
            )
        return row

    def _commit(
        self,
        connection: Connection,
        row: Any,
        added: Collection[str],
        removed: Collection[str],
        details: Mapping[str, Any] | None,
        **about: str | None,
    ) -> RevisionRecord:
        number = row["revision"] + 1
        table = schema.stacks
        # The second condition matters on databases without BEGIN IMMEDIATE, where two writers may read the same number.
        moved = update(table).where(table.c.id == row["id"], table.c.revision == row["revision"])
        if connection.execute(moved.values(revision=number)).rowcount != 1:
            raise StaleStackError(f"Stack {row['name']!r} was changed meanwhile.", next_step="Try again.")
        revision_id = _insert_revision(connection, row["id"], number, details, **about)
        write_changes(connection, row["id"], number, added, removed)
        found = select(schema.stack_revisions).where(schema.stack_revisions.c.id == revision_id)
        return _revision_record(connection, row["name"], connection.execute(found).mappings().one())


def _name(stack: StackRecord | str) -> str:
    return stack if isinstance(stack, str) else stack.name


def _record(row: Any) -> StackRecord:
    return StackRecord(name=row["name"], base_id=row["base_id"], revision=row["revision"])


def _living(name: str) -> ColumnElement[bool]:
    return and_(schema.stacks.c.name == name, schema.stacks.c.removed_at.is_(None))


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


def stack_row(connection: Connection, name: str) -> Any:
    """The row of the stack of that name.

    Raises:
        PatchNotFoundError: there is none; similar names are suggested.
    """
    row = connection.execute(select(schema.stacks).where(_living(name))).mappings().first()
    if row is None:
        names = connection.scalars(
            select(schema.stacks.c.name).where(schema.stacks.c.removed_at.is_(None)).order_by(schema.stacks.c.name)
        ).all()
        raise unknown("stack", name, names, "`rompatch stack list` shows them.", stack=name)
    return row


def _check_revision(stack: Any, number: int | None) -> None:
    if number is not None and not 0 <= number <= stack["revision"]:
        raise PatchNotFoundError(
            f"Stack {stack['name']!r} has no revision {number}.", expected=f"0 to {stack['revision']}"
        )


def _insert_revision(
    connection: Connection, stack_id: int, number: int, details: Mapping[str, Any] | None, **about: str | None
) -> int:
    if about["action"] not in ACTIONS:
        raise StoreError(f"{about['action']!r} is no action of a revision.", expected=", ".join(sorted(ACTIONS)))
    try:
        text = canonical_json(dict(details or {}))
    except (ValueError, TypeError) as error:
        raise StoreError(f"The details of the revision cannot be recorded: {error}.") from error
    parent = number - 1 if number else None
    row = {"stack_id": stack_id, "number": number, "parent": parent, "created_at": now(), "details": text, **about}
    return insert_row(connection, schema.stack_revisions, row)


def _revision_record(connection: Connection, stack: str, row: Any, members: set[str] | None = None) -> RevisionRecord:
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
