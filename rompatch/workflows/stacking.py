"""Apply, revert, remove: operations on the ledger alone, so they take milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.errors import ConflictError, StaleStackError
from rompatch.store.plan import check_push, sharing_keys
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord
from rompatch.workflows.author import author
from rompatch.workflows.conflicts import Pair, check_among, contradictions, refused
from rompatch.workflows.gatekeeping import gatekept
from rompatch.workflows.opened import MAIN_STACK, OpenStore
from rompatch.workflows.provenance import checked_expiry, is_expired
from rompatch.workflows.same_keys import contradicting, same_keys

ATTEMPTS = 5
"""How often an apply is planned where other programs keep changing the stack."""


@dataclass(frozen=True)
class ApplyPlan:
    """What an apply is going to do to a stack as it is at one revision.

    Args:
        stack: the stack; None where it is still to be made (:attr:`stack_name`).
        stack_name: its name.
        new: the patches to be put on.
        superseded: pairs of a patch of *new* and the active one that it replaces.
        sharing: pairs that are about one subject at one site: they share a key.
    """

    stack: StackRecord | None
    stack_name: str
    new: tuple[PatchRecord, ...]
    superseded: tuple[Pair, ...]
    sharing: tuple[Pair, ...]

    @property
    def removed(self) -> tuple[PatchRecord, ...]:
        """The active patches that are to be taken off, each once."""
        return tuple({old.id: old for _, old in self.superseded}.values())


def plan_apply(store: OpenStore, names: Sequence[str], *, supersede: bool = False) -> ApplyPlan:
    """What applying the patches that *names* mean would do. Writes nothing but the sketches of keys that are missing.

    The patch files are read and checked: a damaged one is refused here, not when the model is next loaded. Of the
    stack only those patches are looked at that bear on the new ones: by their subject, or by their keys, which are
    alike for an alias of a subject (:mod:`rompatch.workflows.same_keys`).

    Args:
        names: ids, prefixes of ids, or subjects.
        supersede: active patches that are contradicted are to be replaced.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        ConflictError: active already, or it contradicts an active one (and not *supersede*), or another of *names*.
        BaseMismatchError: it belongs to another base than the stack.
        PatchFileError, StoreError: its file is damaged or missing.
    """
    ledger = store.ledger
    records = {record.id: record for record in map(ledger.resolve, names)}
    new = tuple(records.values())
    if not new:
        raise ConflictError("No patch was named to apply.", next_step="Name one: `rompatch list` shows them.")
    for patch_id in records:
        store.blobs.get(patch_id)
    check_among(new)
    stack, name = _target(store, new[0])
    rivals = () if stack is None else ledger.rivals(stack, new)
    pairs = contradictions(new, [rival for rival in rivals if rival.id not in records])
    here = stack or StackRecord(name, new[0].base_id, 0)
    if pairs and not supersede:
        check_push(here, [], new)  # a patch of another base is told so first
        raise refused(here.name, pairs)
    leaving = {old.id for _, old in pairs}
    staying = [rival for rival in rivals if rival.id not in leaving]
    check_push(here, staying, new)
    members = () if stack is None else ledger.member_ids(stack, stack.revision)
    alike = same_keys(store, [patch_id for patch_id in members if patch_id not in leaving], new)
    by_key = contradicting(alike, here.name, supersede=supersede)
    gone = leaving | {old.id for _, old in by_key}
    sharing = [*sharing_keys(staying, new), *((pair.other, pair.new) for pair in alike if not pair.contradicts)]
    kept = {(one.id, other.id): (one, other) for one, other in sharing if not {one.id, other.id} & gone}
    return ApplyPlan(stack, name, new, (*pairs, *by_key), tuple(kept.values()))


def carry_out(
    store: OpenStore,
    plan: ApplyPlan,
    *,
    message: str | None = None,
    reason: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> RevisionRecord:
    """Do what *plan* says, as one revision, if the stack is still as it was planned for. Writes.

    Args:
        details: recorded with the revision beside the superseded pairs.

    Raises:
        StaleStackError: the stack was changed, or another one came in force, since *plan* was made.
        ConflictError, BaseMismatchError, PatchNotFoundError: a patch was removed meanwhile, or the like.
    """
    with store.ledger.transaction() as ledger:
        found, name = _target(store, plan.new[0])
        if (found, name) != (plan.stack, plan.stack_name):
            raise StaleStackError(
                f"Stack {plan.stack_name!r} was changed after the change was planned.",
                expected="none yet" if plan.stack is None else f"{plan.stack_name}@r{plan.stack.revision}",
                found=f"{name}@r{found.revision}" if found else f"{name}, to be made",
                next_step="Look at it with `rompatch stack log`, then try again.",
            )
        stack = found or ledger.create_stack(name, plan.new[0].base_id, author=author())
        ledger.set_active_stack(name)
        about = dict(details or {})
        if plan.superseded:
            about["superseded"] = [{"new": new.id, "old": old.id} for new, old in plan.superseded]
        return ledger.change(
            stack,
            add=[patch.id for patch in plan.new],
            remove=[patch.id for patch in plan.removed],
            action="supersede" if plan.superseded else "apply",
            message=message,
            reason=reason,
            author=author(),
            details=about,
            expected_revision=stack.revision,
        )


def apply(
    store: OpenStore,
    names: Sequence[str],
    *,
    supersede: bool = False,
    message: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    expires: str | None = None,
    override: Sequence[str] = (),
) -> RevisionRecord:
    """Put the patches that *names* mean onto the active stack, all or none, as one revision. Writes.

    Planned first and then carried out; where another program changes the stack in between it is planned again. A note
    says which patches share a key with another.

    Args:
        names: ids, prefixes of ids, or subjects.
        supersede: replace the active patches that they contradict.
        message, reason: of the revision.
        source: where the facts come from; kept with the patches.
        expires: the day (``YYYY-MM-DD``) from which on the facts may no longer hold; kept with the patches.
        override: gates of the store that may be missed; *reason* says why, and the revision records it.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        ConflictError: active already, or it contradicts an active one.
        GateError: a gate of the store is missed.
        BaseMismatchError: it belongs to another base than the stack.
        PatchFileError: its file is damaged.
        RequestError: *expires* is no day.
    """
    known = provenance(source, expires)
    for attempt in range(ATTEMPTS):
        plan = plan_apply(store, names, supersede=supersede)
        passed_over = gatekept(store, plan.stack, plan.new, plan.removed, override=override, reason=reason)
        try:
            revision = commit(store, plan, known, message=message, reason=reason, details=passed_over)
            break
        except StaleStackError:
            if attempt == ATTEMPTS - 1:
                raise
    note_sharing(store, plan)
    return revision


def provenance(source: str | None, expires: str | None) -> dict[str, str]:
    """What is to be kept with the patches: what was given, checked.

    Raises:
        RequestError: *expires* is no day.
    """
    known = {"source": source, "expires_at": checked_expiry(expires)}
    return {name: value for name, value in known.items() if value is not None}


def commit(
    store: OpenStore,
    plan: ApplyPlan,
    known: Mapping[str, str],
    *,
    message: str | None,
    reason: str | None,
    details: Mapping[str, Any],
) -> RevisionRecord:
    """:func:`carry_out`, and keep what is *known* of the patches, both or neither; a note says what that replaces.
    Writes. Raises what :func:`carry_out` raises."""
    about = {**details, **({"noted": dict(known)} if known else {})}
    with store.ledger.transaction() as ledger:
        if known:
            ledger.annotate_patches([patch.id for patch in plan.new], **known)
        revision = carry_out(store, plan, message=message, reason=reason, details=about or None)
    for patch in plan.new:
        for name, value in known.items():
            earlier = getattr(patch, name)
            if earlier not in (None, value):
                what = name.removesuffix("_at")
                store.reporter.note(f"patch {patch.label}: {what} {value!r} replaces {earlier!r}")
    return revision


def note_sharing(store: OpenStore, plan: ApplyPlan) -> None:
    """Say which patches share a key with another, and which have none."""
    for record in plan.new:
        if is_expired(store.ledger.patch(record.id)):
            store.reporter.note(f"patch {record.label} has expired: `rompatch show {record.short_id}` says when")
        if record.header.request is None:
            store.reporter.note(
                f"patch {record.label} has no keys: it is added to what the other patches give, and may disturb them"
            )
    for one, other in plan.sharing:
        store.reporter.note(
            f"patches {one.label} and {other.label} are about one subject: at apply they share one key and get part of "
            "both values; verify both"
        )


def revert(
    store: OpenStore, names: Sequence[str], *, message: str | None = None, reason: str | None = None
) -> RevisionRecord:
    """Take the patches that *names* mean off the active stack, all of them without names. Writes.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several active ones.
        ConflictError: it is not active, or nothing is; or no stack is.
    """
    with store.ledger.transaction() as ledger:
        stack = ledger.active_stack()
        if stack is None:
            if others := ledger.stacks():
                raise none_active(others)
            raise ConflictError(
                "There is no stack yet, so there is nothing to revert.",
                next_step="The first `rompatch apply` makes one.",
            )
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


def none_active(stacks: Iterable[StackRecord]) -> ConflictError:
    """The error for a store in which none of its *stacks* is active."""
    return ConflictError(
        "No stack is active.",
        found=f"stacks {', '.join(stack.name for stack in stacks)}",
        next_step="Choose one: `rompatch stack use NAME`.",
    )


def _target(store: OpenStore, record: PatchRecord) -> tuple[StackRecord | None, str]:
    """The stack that a patch goes to, None where it is still to be made, and its name.

    The active stack. The first apply of a store makes one, on the base of its patch. An empty stack of another base
    gives way to one on the patch's, since nothing in it could contradict.
    """
    ledger = store.ledger
    stack = ledger.active_stack()
    known = {existing.name: existing for existing in ledger.stacks()}
    if stack is None:
        if known:
            raise none_active(known.values())
        return None, MAIN_STACK
    if stack.base_id != record.base_id and not ledger.member_ids(stack):
        name = f"{MAIN_STACK}-{record.base_id[:8]}"
        return known.get(name), name
    return stack, stack.name
