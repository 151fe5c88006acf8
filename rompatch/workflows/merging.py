"""Merging stacks: the union of two sets of patches, with a report of what stands in the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rompatch.errors import BaseMismatchError, ConflictError, PatchFileError, PatchNotFoundError, StoreError
from rompatch.store.plan import check_push
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord
from rompatch.workflows.author import author
from rompatch.workflows.conflicts import Pair, contradictions
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.same_keys import contradicting_members

Prefer = Literal["ours", "theirs"]


@dataclass(frozen=True)
class MergePlan:
    """What merging a revision into a stack would do.

    Args:
        target: the stack that takes the patches, as it is.
        source: the stack and the number of the revision that they come from.
        added: patches that the target does not have.
        n_common: patches that both have.
        conflicts: pairs of a patch of the source and one of the target that it contradicts.
        problems: what stands in the way, whatever is preferred: patch id and reason.
    """

    target: StackRecord
    source: tuple[StackRecord, int]
    added: tuple[PatchRecord, ...]
    n_common: int
    conflicts: tuple[Pair, ...]
    problems: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "into": self.target.name,
            "from": {"stack": self.source[0].name, "revision": self.source[1]},
            "added": [record.id for record in self.added],
            "n_common": self.n_common,
            "conflicts": [{"theirs": one.id, "ours": other.id} for one, other in self.conflicts],
            "problems": [{"id": patch_id, "reason": reason} for patch_id, reason in self.problems],
        }


def plan_merge(store: OpenStore, source: str, into: str | None = None) -> MergePlan:
    """What merging *source* (a stack, or ``NAME@revision``) into a stack, the active one if none is named, would do.
    Writes nothing but the sketches of keys that are missing; the files of the patches that would be added are read and
    checked. Contradictions are found by subject and by key, as for an apply.

    Raises:
        PatchNotFoundError: there is no such stack, tag or revision.
        ConflictError: a stack is to be merged into itself.
        StoreError: the file of a member cannot be read that may contradict a patch to be added.
    """
    ledger = store.ledger
    target, _ = ledger.find_revision("HEAD", into)
    origin, number = ledger.find_revision(source if "@" in source else f"{source}@HEAD")
    if origin == target and number == target.revision:
        raise ConflictError(f"Stack {target.name!r} cannot be merged into itself.", next_step="Name another stack.")
    ours, theirs = set(ledger.member_ids(target)), set(ledger.member_ids(origin, number))
    added = ledger.records(theirs - ours)
    rivals = ledger.rivals(target, added)
    problems = tuple(_problems(store, target, rivals, added))
    conflicts = contradictions(added, rivals)
    unusable = {patch_id for patch_id, _ in problems}
    usable = [record for record in added if record.id not in unusable and record.base_id == target.base_id]
    conflicts += contradicting_members(store, ours - {old.id for _, old in conflicts}, usable)
    return MergePlan(target, (origin, number), added, len(ours & theirs), conflicts, problems)


def merge(
    store: OpenStore,
    source: str,
    into: str | None = None,
    *,
    prefer: Prefer | None = None,
    message: str | None = None,
    reason: str | None = None,
) -> RevisionRecord:
    """Put the patches of *source* onto a stack beside its own, as one revision. Writes.

    Args:
        source: a stack's name, or ``NAME@revision``.
        into: the stack that takes them; None is the active one.
        prefer: where both change one fact to different objects, keep the target's patch ("ours") or let the source's
            supersede it ("theirs"), which the revision records as ``apply --supersede`` does; None refuses.
        message, reason: of the revision.

    Raises:
        ConflictError: patches contradict each other and nothing is preferred; patches of the source cannot be used;
            or there is nothing to merge. All of them are named.
        BaseMismatchError: the stacks are on different bases.
        PatchNotFoundError: there is no such stack, tag or revision.
    """
    with store.ledger.transaction() as ledger:
        plan = plan_merge(store, source, into)
        _check(store, plan, prefer)
        left_out = {one.id for one, _ in plan.conflicts} if prefer == "ours" else set()
        leaving = {old.id for _, old in plan.conflicts} if prefer == "theirs" else set()
        added = [record.id for record in plan.added if record.id not in left_out]
        if not added:
            raise ConflictError(_nothing_to_add(plan, len(left_out)), next_step="Nothing needs doing.")
        details: dict[str, Any] = {"from": {"stack": plan.source[0].name, "revision": plan.source[1]}}
        if leaving:
            details["superseded"] = [{"new": new.id, "old": old.id} for new, old in plan.conflicts]
        if left_out:
            details["left_out"] = sorted(left_out)
        return ledger.change(
            plan.target,
            add=added,
            remove=sorted(leaving),
            action="merge",
            message=message,
            reason=reason,
            author=author(),
            details=details,
            expected_revision=plan.target.revision,
        )


def _nothing_to_add(plan: MergePlan, n_kept: int) -> str:
    has = f"Stack {plan.target.name!r} has every patch of {_name(plan)} already"
    return f"{has}." if not n_kept else f"{has} but {n_kept} that contradict its own, which stay (--ours)."


def _name(plan: MergePlan) -> str:
    return f"{plan.source[0].name}@r{plan.source[1]}"


def _check(store: OpenStore, plan: MergePlan, prefer: Prefer | None) -> None:
    target, (origin, _) = plan.target, plan.source
    if origin.base_id != target.base_id:
        sources = {base.id: base.ref.source for base in store.ledger.bases()}
        raise BaseMismatchError(
            f"Stack {origin.name!r} cannot be merged into {target.name!r}: they are on different bases.",
            expected=f"{sources[target.base_id]} ({target.base_id[:12]})",
            found=f"{sources[origin.base_id]} ({origin.base_id[:12]})",
            next_step="Compute its patches anew for the other base with `rompatch create`.",
        )
    open_conflicts = plan.conflicts if prefer is None else ()
    if not plan.problems and not open_conflicts:
        return
    lines = [f"{one.label} contradicts {other.label}" for one, other in open_conflicts]
    lines += [reason for _, reason in plan.problems]
    raise ConflictError(
        f"Nothing of {_name(plan)} was merged into stack {target.name!r}.",
        found="; ".join(lines),
        next_step="Choose with --ours or --theirs: ours stay, or theirs supersede them."
        if not plan.problems
        else "Mend or revert these patches in the source first; `rompatch fsck` names damaged files.",
        conflicts=tuple((one.id, other.id) for one, other in open_conflicts),
        problems=plan.problems,
    )


def _problems(
    store: OpenStore, target: StackRecord, rivals: tuple[PatchRecord, ...], added: tuple[PatchRecord, ...]
) -> Iterable[tuple[str, str]]:
    """What makes patches unusable here: removed, file missing or damaged, computed for other weights."""
    contradicted = {old.id for _, old in contradictions(added, rivals)}
    others = [rival for rival in rivals if rival.id not in contradicted]
    for record in added:
        try:
            store.ledger.patch(record.id)
            store.blobs.get(record.id)
            check_push(target, others, [record])
        except (PatchNotFoundError, StoreError, PatchFileError, BaseMismatchError) as error:
            yield record.id, str(error)
