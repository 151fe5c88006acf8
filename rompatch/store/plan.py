"""May these patches go onto, or off, this stack? Pure: records in, an error or nothing out; no SQL, no tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from rompatch.edits import same_text
from rompatch.errors import BaseMismatchError, ConflictError
from rompatch.patch import SHORT_ID
from rompatch.store.records import PatchRecord, StackRecord


def check_push(stack: StackRecord, members: Sequence[PatchRecord], new: Sequence[PatchRecord]) -> None:
    """Whether *new* may join *members* on *stack*, all of them together.

    Raises:
        ConflictError: one is active already, or contradicts one that is (same subject and template, other object).
        BaseMismatchError: one was computed for another base, or for another tensor of the same name.
    """
    if not new:
        raise ConflictError("No patch was named to apply.", next_step="Name one: `rompatch list` shows them.")
    active = list(members)
    for patch in new:
        _check_inactive(stack, active, patch)
        _check_base(stack, active, patch)
        _check_contradiction(stack, active, patch)
        active.append(patch)


def check_pop(stack: StackRecord, members: Collection[str], ids: Sequence[str]) -> None:
    """Whether *ids* may leave *stack*.

    Raises:
        ConflictError: one of them is not active, or is named twice, or none is named.
    """
    if not ids:
        raise ConflictError("No patch was named to revert.", next_step="Name one, or use `rompatch revert --all`.")
    active, counts = set(members), Counter(ids)  # stacks may have thousands of patches
    for patch_id in ids:
        if patch_id not in active or counts[patch_id] > 1:
            raise ConflictError(
                f"Patch {patch_id[:SHORT_ID]} is not active in stack {stack.name!r}, so there is nothing to revert.",
                found=_active(members),
                next_step="`rompatch list` shows which patches are active.",
                patch_id=patch_id,
            )


def sharing_keys(members: Sequence[PatchRecord], new: Sequence[PatchRecord]) -> list[tuple[PatchRecord, PatchRecord]]:
    """Pairs of a patch of *new* and one before it (on the stack or in *new*) that are about one subject at one site.

    A key depends on the subject far more than on the prompt around it, so the solver finds such patches to share one
    key and gives it part of both values.
    """
    pairs = []
    active = list(members)
    for patch in new:
        pairs += [(other, patch) for other in active if same_text(other.subject, patch.subject) and _meet(other, patch)]
        active.append(patch)
    return pairs


def _meet(one: PatchRecord, other: PatchRecord) -> bool:
    if one.header.request is None or other.header.request is None:  # at least one has no keys
        return False
    return not {site.parameter for site in one.header.sites}.isdisjoint(site.parameter for site in other.header.sites)


def _active(ids: Iterable[str]) -> str:
    short = [patch_id[:SHORT_ID] for patch_id in sorted(ids)]
    more = f" and {len(short) - 5} more" if len(short) > 5 else ""
    return f"active are {', '.join(short[:5])}{more}" if short else "no patch is active"


def _check_inactive(stack: StackRecord, active: Sequence[PatchRecord], patch: PatchRecord) -> None:
    if any(other.id == patch.id for other in active):
        raise ConflictError(
            f"Patch {patch.label} is already active in stack {stack.name!r}.",
            next_step=f"Nothing needs doing; `rompatch revert {patch.short_id}` would take it off.",
            patch_id=patch.id,
        )


def _check_base(stack: StackRecord, active: Sequence[PatchRecord], patch: PatchRecord) -> None:
    if patch.base_id != stack.base_id:
        raise BaseMismatchError(
            f"Patch {patch.label} was computed for the base {patch.header.base.source!r}, but stack {stack.name!r} "
            "is on another one.",
            expected=f"base {stack.base_id[:SHORT_ID]}",
            found=f"base {patch.base_id[:SHORT_ID]}",
            next_step="Apply it in a stack on its own base, or compute it anew for this base with `rompatch create`.",
            patch_id=patch.id,
        )
    hashes = {site.parameter: (site.sha256, other) for other in active for site in other.header.sites}
    for site in patch.header.sites:
        sha256, other = hashes.get(site.parameter, (site.sha256, patch))
        if sha256 != site.sha256:
            raise BaseMismatchError(
                f"Patch {patch.label} and the active patch {other.label} were computed for different weights of "
                f"{site.parameter}.",
                expected=f"sha256 {sha256[:SHORT_ID]}",
                found=f"sha256 {site.sha256[:SHORT_ID]}",
                next_step="Only one of them can fit this base: compute the other anew with `rompatch create`.",
                patch_id=patch.id,
            )


def _check_contradiction(stack: StackRecord, active: Sequence[PatchRecord], patch: PatchRecord) -> None:
    new = patch.header.request
    for other in active:
        old = other.header.request
        if new is None or old is None:
            continue
        same_fact = same_text(old.subject, new.subject) and same_text(old.template, new.template)
        if same_fact and not same_text(old.target_new, new.target_new):
            raise ConflictError(
                f"Patch {patch.label} contradicts the active patch {other.label} in stack {stack.name!r}: same subject "
                "and prompt, another object.",
                next_step=f"Take the active one off first: `rompatch revert {other.short_id}`.",
                patch_id=patch.id,
                active_id=other.id,
            )
