"""The ledger's verbs that change a stack: every change is one new numbered revision, and nothing is rewritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from rompatch.errors import ConflictError, StaleStackError
from rompatch.store import schema
from rompatch.store.lookup import records_of, subject_key
from rompatch.store.members import batches, member_ids, staying
from rompatch.store.plan import check_pop, check_push
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord
from rompatch.store.stack_rows import commit_revision, name_of, stack_record, stack_row
from rompatch.store.stacks import StackVerbs


class ChangeVerbs(StackVerbs):
    """Verbs that change stacks; part of :class:`~rompatch.store.ledger.Ledger`."""

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
            row = _row_at(connection, stack, expected_revision)
            if remove:
                check_pop(stack_record(row), member_ids(connection, row["id"]), remove)
            if add:
                new = [self.patch(patch_id) for patch_id in add]
                leaving = set(remove)
                rivals = [patch for patch in _rivals(connection, row["id"], new) if patch.id not in leaving]
                check_push(stack_record(row), rivals, new)
            about = {"action": action, "message": message, "reason": reason, "author": author}
            return commit_revision(connection, row, add, remove, details, **about)

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
            row = _row_at(connection, stack, about.get("expected_revision"))
            ids = member_ids(connection, row["id"])
            if not ids:
                raise ConflictError(
                    f"Stack {row['name']!r} has no active patch, so there is nothing to revert.",
                    next_step="`rompatch stack log` shows what was on it.",
                )
            return self.change(stack, remove=ids, **({"action": "clear"} | about))

    def rivals(self, stack: StackRecord | str, new: Sequence[PatchRecord]) -> tuple[PatchRecord, ...]:
        """The members that bear on whether *new* may join: the same patch, the same subject, or other weights of a
        site that both change. A large stack need not be read whole. Reads only.

        Raises:
            PatchNotFoundError: no such stack.
        """
        with self.session.reading() as connection:
            return _rivals(connection, stack_row(connection, name_of(stack))["id"], new)


def _rivals(connection: Connection, stack_id: int, new: Sequence[PatchRecord]) -> tuple[PatchRecord, ...]:
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


def _row_at(connection: Connection, stack: StackRecord | str, expected: int | None) -> Any:
    row = stack_row(connection, name_of(stack))
    if expected is not None and row["revision"] != expected:
        raise StaleStackError(
            f"Stack {row['name']!r} was changed meanwhile.",
            expected=f"revision {expected}",
            found=f"revision {row['revision']}",
            next_step="Look at it with `rompatch stack log`, then try again.",
            stack=row["name"],
        )
    return row
