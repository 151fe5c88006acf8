"""Facts that contradict each other: one subject, one relation, two objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rompatch.edits import EditRequest, same_text
from rompatch.errors import ConflictError
from rompatch.store.records import PatchRecord

Pair = tuple[PatchRecord, PatchRecord]
"""A patch, and the one on the stack that it contradicts."""


def same_relation(one: EditRequest, other: EditRequest) -> bool:
    """Whether two requests about one subject ask for the same relation: by template, by the phrase that was typed, or
    because the atlas knows both wordings as one relation."""
    return same_wording(one, other) or _same_in_atlas(one, other)


def same_wording(one: EditRequest, other: EditRequest) -> bool:
    """The same template or the same relation phrase, but for case and white space."""
    if same_text(one.template, other.template):
        return True
    return one.relation is not None and other.relation is not None and same_text(one.relation, other.relation)


def contradicts(one: PatchRecord, other: PatchRecord) -> bool:
    """Whether both change the same fact, to different objects. Patches without a request contradict nobody."""
    left, right = one.header.request, other.header.request
    if left is None or right is None or one.base_id != other.base_id:
        return False
    if not same_text(left.subject, right.subject) or same_text(left.target_new, right.target_new):
        return False
    return same_relation(left, right)


def contradictions(new: Iterable[PatchRecord], members: Sequence[PatchRecord]) -> tuple[Pair, ...]:
    """Every pair of a patch of *new* and one of *members* that it contradicts."""
    return tuple((patch, member) for patch in new for member in members if contradicts(patch, member))


def check_among(new: Sequence[PatchRecord]) -> None:
    """Whether *new* agree with each other.

    Raises:
        ConflictError: two of them contradict each other.
    """
    for index, patch in enumerate(new):
        for one, other in contradictions([patch], new[:index]):
            raise ConflictError(
                f"Patch {one.label} contradicts {other.label}, which is to be applied with it: same subject and "
                "relation, another object.",
                next_step="Apply one of them.",
                patch_id=one.id,
                active_id=other.id,
            )


def refused(stack: str, pairs: Sequence[Pair]) -> ConflictError:
    """The error for patches that contradict active ones; it names every pair."""
    (patch, active), *others = pairs
    more = "".join(f" {one.label} contradicts {other.label}." for one, other in others)
    return ConflictError(
        f"Patch {patch.label} contradicts the active patch {active.label} in stack {stack!r}: same subject and "
        f"relation, another object.{more}",
        next_step="Replace the active one with `rompatch apply --supersede`, or take it off first: "
        f"`rompatch revert {active.short_id}`.",
        patch_id=patch.id,
        active_id=active.id,
        pairs=tuple((one.id, other.id) for one, other in pairs),
    )


def _same_in_atlas(one: EditRequest, other: EditRequest) -> bool:
    from rompatch.verify.atlas.matching import match_relation  # a third of a second, for pairs in doubt only

    relations = [
        match_relation(request.relation or request.template, request.subject, (request.target_new,))
        for request in (one, other)
    ]
    return relations[0] is not None and relations[0] == relations[1]
