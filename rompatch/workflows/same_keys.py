"""Which patches are about one thing, told by their keys: aliases of a subject and paraphrases of a relation.

Two patches that share a key (cosine above 0.98 in the metric of C^-1) speak to the model about one subject, whatever
words their requests use. If they state the same relation and another object, they contradict each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rompatch.edits import EditRequest, same_text
from rompatch.errors import ConflictError
from rompatch.patch import SiteFactors
from rompatch.store.records import PatchRecord
from rompatch.workflows.conflicts import Pair, same_relation
from rompatch.workflows.opened import OpenStore


@dataclass(frozen=True)
class SameKey:
    """The patch *new* shares its key with *other*, which is active or comes with it.

    Args:
        similarity: the least cosine of corresponding keys, at the site where they are most alike.
        contradicts: same relation, another object.
        together: both are to be applied now.
    """

    new: PatchRecord
    other: PatchRecord
    similarity: float
    contradicts: bool
    together: bool


def same_keys(store: OpenStore, member_ids: Iterable[str], new: Sequence[PatchRecord]) -> tuple[SameKey, ...]:
    """Pairs of a patch of *new* and a member, or an earlier one of *new*, that share a key. Writes the sketches of
    patches that have none yet; of members only their sketches are read, and the files of candidates.

    Raises:
        StoreError, PatchFileError: a file that is needed is missing or damaged.
    """
    from rompatch.apply.sketch import candidates

    added = [record.id for record in new]
    old = sorted(set(member_ids) - set(added))
    sketches = _sketches(store, [*old, *added])
    ids = [(patch_id, data) for patch_id in (*old, *added) for data in sketches[patch_id]]
    fresh = [(patch_id, data) for patch_id in added for data in sketches[patch_id]]
    order = {patch_id: number for number, patch_id in enumerate((*old, *added))}
    pairs = {
        (fresh[one][0], ids[other][0])
        for one, other in candidates([data for _, data in fresh], [data for _, data in ids])
        if order[ids[other][0]] < order[fresh[one][0]]
    }
    found = [
        _compared(store, one, other, together=other in added)
        for one, other in sorted(pairs, key=lambda pair: (order[pair[0]], pair[1]))
    ]
    return tuple(pair for pair in found if pair is not None)


def contradicting(pairs: Iterable[SameKey], stack: str, *, supersede: bool) -> tuple[Pair, ...]:
    """The pairs that contradict each other, for *supersede* to replace.

    Raises:
        ConflictError: there is one, and it is not to be superseded, or both of it are to be applied together.
    """
    pairs = [pair for pair in pairs if pair.contradicts]
    for pair in pairs:
        if pair.together or not supersede:
            raise _refused(pair, stack)
    return tuple((pair.new, pair.other) for pair in pairs)


def _refused(pair: SameKey, stack: str) -> ConflictError:
    where = "which is to be applied with it" if pair.together else f"which is active in stack {stack!r}"
    return ConflictError(
        f"Patch {pair.new.label} contradicts {pair.other.label}, {where}: their keys are one (cosine "
        f"{pair.similarity:.3f}), so both are about one subject, and they give the same relation another object.",
        next_step="Apply one of them."
        if pair.together
        else "Replace the active one with `rompatch apply --supersede`, or take it off first: "
        f"`rompatch revert {pair.other.short_id}`.",
        patch_id=pair.new.id,
        active_id=pair.other.id,
    )


def same_fact(one: EditRequest, other: EditRequest) -> bool:
    """Whether two requests about one subject are about one relation: by their wording or the atlas, or because they
    replace the same true object."""
    if same_relation(one, other):
        return True
    return bool(one.target_true and other.target_true and same_text(one.target_true, other.target_true))


def _compared(store: OpenStore, new_id: str, other_id: str, *, together: bool) -> SameKey | None:
    from rompatch.apply.gram import constraints_of, key_similarity
    from rompatch.apply.solve import SAME_KEY

    sites = [
        {
            site.parameter: factors
            for site, factors in zip(patch.header.sites, patch.factors, strict=True)
            if isinstance(factors, SiteFactors)
        }
        for patch in (store.blobs.get(new_id), store.blobs.get(other_id))
    ]
    alike = max(
        (
            key_similarity(constraints_of(sites[1][name]), constraints_of(sites[0][name]))
            for name in sites[0]
            if name in sites[1]
        ),
        default=0.0,
    )
    if alike <= SAME_KEY:
        return None
    new, other = store.ledger.patch(new_id), store.ledger.patch(other_id)
    differs = not same_text(new.request.target_new, other.request.target_new)
    return SameKey(new, other, alike, differs and same_fact(new.request, other.request), together)


def _sketches(store: OpenStore, ids: Sequence[str]) -> dict[str, tuple[bytes, ...]]:
    """Of each patch, from the ledger; those that have none get theirs from their file, once."""
    from rompatch.apply.sketch import sketches_of

    known = store.ledger.key_sketches(ids)
    missing = [patch_id for patch_id in ids if None in known.get(patch_id, (None,))]
    made: dict[str, tuple[bytes, ...]] = {}
    for done, patch_id in enumerate(missing, 1):
        made[patch_id] = sketches_of(store.blobs.get(patch_id))
        store.reporter.step("reading keys", done, len(missing))
    if made:
        store.ledger.fill_key_sketches(made)
    whole = {patch_id: made.get(patch_id, known.get(patch_id, ())) for patch_id in ids}
    return {patch_id: tuple(data for data in sketches if data is not None) for patch_id, sketches in whole.items()}
