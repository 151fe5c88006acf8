"""Stacks as versions: made, listed, chosen, removed; their revisions logged, compared, tagged and checked out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rompatch.errors import ConflictError, PatchNotFoundError, RequestError
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord, TagRecord
from rompatch.workflows.author import author
from rompatch.workflows.browsing import patch_json
from rompatch.workflows.opened import OpenStore


@dataclass(frozen=True)
class StackInfo:
    """One stack: its base, how many patches it has, its tags, and whether it is the active one."""

    stack: StackRecord
    base: str
    n_patches: int
    active: bool
    tags: tuple[TagRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            **vars(self.stack),
            "base": self.base,
            "n_patches": self.n_patches,
            "active": self.active,
            "tags": [vars(tag) for tag in self.tags],
        }


@dataclass(frozen=True)
class RevisionPage:
    """One page of a stack's revisions, newest first; ``more``: older ones follow."""

    stack: StackRecord
    revisions: tuple[RevisionRecord, ...]
    tags: tuple[TagRecord, ...]
    labels: dict[str, str]
    limit: int
    offset: int
    more: bool

    def tags_at(self, number: int) -> list[str]:
        """The tags of one revision."""
        return [tag.name for tag in self.tags if tag.revision == number]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        revisions = [
            revision.to_json()
            | {
                "members": len(revision.members),
                "overridden": list(revision.overridden),
                "tags": self.tags_at(revision.number),
            }
            for revision in self.revisions
        ]
        return {"stack": self.stack.name, "revisions": revisions} | {
            name: getattr(self, name) for name in ("limit", "offset", "more")
        }


@dataclass(frozen=True)
class StackDiff:
    """What has to be put on and taken off to come from one revision to another."""

    before: tuple[StackRecord, int]
    after: tuple[StackRecord, int]
    added: tuple[PatchRecord, ...]
    removed: tuple[PatchRecord, ...]
    n_common: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        ends = {
            name: {"stack": stack.name, "revision": number}
            for name, (stack, number) in (("from", self.before), ("to", self.after))
        }
        lists = {name: [patch_json(one, False) for one in getattr(self, name)] for name in ("added", "removed")}
        for one in (*lists["added"], *lists["removed"]):
            del one["active"]
        return ends | lists | {"n_common": self.n_common}


def new_stack(
    store: OpenStore, name: str, *, start: str | None = None, message: str | None = None, use: bool = False
) -> StackInfo:
    """A new stack, empty or with the members of a revision. Writes.

    Args:
        name: what it is called.
        start: a revision whose members it begins with; its base is the new stack's. Without it the base is that of the
            active stack, else the only one in the store.
        message: for the log.
        use: make it the active stack.

    Raises:
        ConflictError: a stack of that name exists, or it is not clear which base it is for.
        StoreError: no stack can be called so.
        PatchNotFoundError: there is no such revision.
    """
    with store.ledger.transaction() as ledger:
        base_id = _base_of_new(store)
        members: tuple[str, ...] = ()
        details: dict[str, Any] = {}
        if start is not None:
            origin, number = ledger.find_revision(start)
            base_id, members = origin.base_id, ledger.member_ids(origin, number)
            details = {"from": {"stack": origin.name, "revision": number}}
        if base_id is None:
            raise ConflictError(
                "It is not clear which base the stack is for.",
                found=f"{len(ledger.bases())} bases and no active stack",
                next_step="Name a revision to begin with (--from), or make a patch first: `rompatch create`.",
            )
        ledger.create_stack(name, base_id, author=author(), message=message)
        if members:
            _check_present(ledger.records(members))
            ledger.change(name, add=members, action="checkout", message=message, author=author(), details=details)
        if use:
            ledger.set_active_stack(name)
    return stack_info(store, name)


def stack_infos(store: OpenStore) -> tuple[StackInfo, ...]:
    """Every stack, by name. Reads only."""
    return tuple(stack_info(store, stack.name) for stack in store.ledger.stacks())


def stack_info(store: OpenStore, name: str | None = None) -> StackInfo:
    """One stack, the active one if none is named. Reads only.

    Raises:
        PatchNotFoundError: there is none of that name, or none is active.
    """
    stack, _ = store.ledger.find_revision("HEAD", name)
    bases = {base.id: base.ref.source for base in store.ledger.bases()}
    return StackInfo(
        stack,
        bases[stack.base_id],
        len(store.ledger.member_ids(stack)),
        store.ledger.active_stack() == stack,
        store.ledger.tags(stack),
    )


def revision(store: OpenStore, name: str | None = None) -> tuple[RevisionRecord, tuple[PatchRecord, ...]]:
    """One revision and the patches in it. Reads only.

    Args:
        name: a revision, or a stack, whose newest one is meant; None is the active stack's newest.

    Raises:
        PatchNotFoundError: there is no such stack, tag or revision.
    """
    ledger = store.ledger
    if name is not None and name in {stack.name for stack in ledger.stacks()}:
        name = f"{name}@HEAD"
    stack, number = ledger.find_revision("HEAD" if name is None else name)
    return ledger.revision(stack, number), ledger.members(stack, number)


def use_stack(store: OpenStore, name: str) -> StackInfo:
    """Make a stack the active one. Writes.

    Raises:
        PatchNotFoundError: there is none of that name.
    """
    store.ledger.set_active_stack(name)
    return stack_info(store, name)


def remove_stack(
    store: OpenStore, name: str, *, force: bool = False, message: str | None = None, reason: str | None = None
) -> RevisionRecord:
    """Remove a stack; its revisions stay in the log, its patches in the store. Writes.

    Raises:
        ConflictError: it is active or has patches, and not *force*.
        PatchNotFoundError: there is none of that name.
    """
    return store.ledger.drop_stack(name, force=force, author=author(), message=message, reason=reason)


def stack_log(store: OpenStore, name: str | None = None, *, limit: int = 20, offset: int = 0) -> RevisionPage:
    """One page of a stack's revisions, newest first. Reads only.

    Raises:
        PatchNotFoundError: there is no such stack.
        RequestError: a negative limit or offset.
    """
    if limit < 0 or offset < 0:
        raise RequestError("Limit and offset must not be negative.", found=f"{limit} and {offset}")
    ledger = store.ledger
    stack, _ = ledger.find_revision("HEAD", name)
    found = ledger.revisions(stack, limit=limit + 1, offset=offset)
    shown = found[:limit]
    changed = {patch_id for one in shown for patch_id in (*one.added[:SHOWN], *one.removed[:SHOWN])}
    return RevisionPage(stack, shown, ledger.tags(stack), store.labels(changed), limit, offset, len(found) > limit)


SHOWN = 3
"""Patches that a line of the log names for each revision."""


def diff(store: OpenStore, before: str, after: str = "HEAD") -> StackDiff:
    """What changes from one revision to another, of one stack or of two. Reads only.

    Raises:
        PatchNotFoundError: there is no such stack, tag or revision.
    """
    ledger = store.ledger
    one, other = ledger.find_revision(before), ledger.find_revision(after)
    old, new = set(ledger.member_ids(*one)), set(ledger.member_ids(*other))
    return StackDiff(one, other, ledger.records(new - old), ledger.records(old - new), len(old & new))


def checkout(
    store: OpenStore, revision: str, *, message: str | None = None, reason: str | None = None
) -> RevisionRecord:
    """A new revision of the active stack whose members are those of an older one, or of another stack's. Writes.

    Nothing is rewritten. The files of the patches that come back are read and checked.

    Raises:
        PatchNotFoundError: there is no such stack, tag or revision.
        ConflictError: the members are these already, or patches of that revision were removed since.
        BaseMismatchError: it is a revision of a stack on another base.
        PatchFileError, StoreError: a file is damaged or missing.
    """
    with store.ledger.transaction() as ledger:
        stack, _ = ledger.find_revision("HEAD")
        origin, number = ledger.find_revision(revision)
        now, then = set(ledger.member_ids(stack)), set(ledger.member_ids(origin, number))
        if now == then:
            raise ConflictError(
                f"Stack {stack.name!r} has exactly the patches of {origin.name}@r{number} already.",
                next_step="Nothing needs doing.",
            )
        _check_present(ledger.records(then - now))
        for patch_id in sorted(then - now):
            store.blobs.get(patch_id)
        return ledger.change(
            stack,
            add=sorted(then - now),
            remove=sorted(now - then),
            action="checkout",
            message=message,
            reason=reason,
            author=author(),
            details={"from": {"stack": origin.name, "revision": number}},
        )


def tag(store: OpenStore, name: str, revision: str = "HEAD", *, message: str | None = None) -> TagRecord:
    """Give a revision of the active stack (or of ``NAME@...``) a name, for good. Writes.

    Raises:
        ConflictError: the stack has such a tag already.
        StoreError: no tag can be called so.
        PatchNotFoundError: there is no such stack, tag or revision.
    """
    with store.ledger.transaction() as ledger:
        stack, number = ledger.find_revision(revision)
        return ledger.add_tag(stack, name, number, message=message, author=author())


def _base_of_new(store: OpenStore) -> str | None:
    stack = store.ledger.active_stack()
    bases = store.ledger.bases()
    if stack is not None:
        return stack.base_id
    return bases[0].id if len(bases) == 1 else None


def _check_present(records: Iterable[PatchRecord]) -> None:
    gone = [record for record in records if record.removed_at is not None]
    if gone:
        raise PatchNotFoundError(
            f"Patches of that revision were removed since: {', '.join(one.label for one in gone[:8])}"
            f"{f' and {len(gone) - 8} more' if len(gone) > 8 else ''}.",
            next_step="Compute them anew with `rompatch create`; the same inputs give the same ids.",
            patch_ids=tuple(record.id for record in gone),
        )
