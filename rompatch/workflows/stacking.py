"""Apply, revert, remove: operations on the ledger alone, so they take milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

from rompatch.errors import ConflictError
from rompatch.store.plan import sharing_keys
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord
from rompatch.workflows.author import author
from rompatch.workflows.opened import MAIN_STACK, OpenStore


def apply(
    store: OpenStore, names: Sequence[str], *, message: str | None = None, reason: str | None = None
) -> RevisionRecord:
    """Put the patches that *names* mean onto the active stack, all or none, as one revision. Writes.

    The patch files are read and checked first: a damaged one is refused here, not when the model is next loaded. A
    note says which patches share a key with another.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        ConflictError: active already, or it contradicts an active one.
        BaseMismatchError: it belongs to another base than the stack.
        PatchFileError: its file is damaged.
    """
    with store.ledger.transaction() as ledger:
        records = [ledger.resolve(name) for name in names]
        for record in records:
            store.blobs.get(record.id)
        stack = _stack_for(store, records[0])
        new = {record.id: record for record in records}
        members = ledger.members(stack)
        revision = ledger.push(stack, list(new), message=message, reason=reason, author=author())
    for one, other in sharing_keys(members, list(new.values())):
        store.reporter.note(
            f"patches {one.label} and {other.label} are about one subject: at apply they share one key and get part of "
            "both values; verify both"
        )
    return revision


def revert(
    store: OpenStore, names: Sequence[str], *, message: str | None = None, reason: str | None = None
) -> RevisionRecord:
    """Take the patches that *names* mean off the active stack, all of them without names. Writes.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several active ones.
        ConflictError: it is not active, or nothing is.
    """
    with store.ledger.transaction() as ledger:
        stack = ledger.active_stack()
        if stack is None:
            raise ConflictError("There is no stack yet, so there is nothing to revert.")
        if not names:
            return ledger.clear(stack, message=message, reason=reason, author=author())
        ids = list(dict.fromkeys(ledger.resolve(name, active_only=True).id for name in names))
        return ledger.pop(stack, ids, message=message, reason=reason, author=author())


def remove(store: OpenStore, name: str) -> PatchRecord:
    """Forget the patch that *name* means, then delete its file. Writes.

    Raises:
        PatchNotFoundError, AmbiguousIdError: it means no patch, or several.
        ConflictError: it is active.
    """
    record = store.ledger.remove_patch(store.ledger.resolve(name).id)
    with store.ledger.transaction() as ledger:  # unless another program has made the patch anew meanwhile
        if record.id in ledger.tombstones():
            store.blobs.remove(record.id)
    return record


def _stack_for(store: OpenStore, record: PatchRecord) -> StackRecord:
    """The active stack; the first apply of a store makes one, on the base of its patch. An empty stack of another
    base gives way to a new one, since nothing in it could contradict."""
    ledger = store.ledger
    stack = ledger.active_stack()
    if stack is None:
        return ledger.create_stack(MAIN_STACK, record.base_id, author=author())
    if stack.base_id != record.base_id and not ledger.members(stack):
        name = f"{MAIN_STACK}-{record.base_id[:8]}"
        known = {existing.name for existing in ledger.stacks()}
        fresh = ledger.stack(name) if name in known else ledger.create_stack(name, record.base_id, author=author())
        return ledger.set_active_stack(fresh.name)
    return stack
