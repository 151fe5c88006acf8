"""Which patches are about one thing, told by their keys: aliases of a subject and paraphrases of a relation.

Two patches that share a key (cosine above 0.98 in the metric of C^-1) speak to the model about one subject, whatever
words their requests use. If they state the same relation and another object, they contradict each other.

A member whose file cannot be read has a key that nobody can compare. Where its request could contradict no new patch
whatever its key is (another relation, the same object, another weight), that does not matter, and a note says so.
Otherwise the new patch is refused: a contradiction that cannot be seen is no agreement.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rompatch.edits import EditRequest, same_text
from rompatch.errors import ConflictError, PatchFileError, RompatchError, StoreError
from rompatch.patch import Patch, SiteFactors
from rompatch.store.records import PatchRecord
from rompatch.workflows.conflicts import Pair, same_relation
from rompatch.workflows.opened import OpenStore

Unread = dict[str, tuple[RompatchError, list[str]]]
"""Members whose files cannot be read: why, and the new patches whose keys may be like theirs."""


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
        StoreError, PatchFileError: the file of one of *new* is missing or damaged, or that of a member which could
            contradict one of *new*.
    """
    from rompatch.apply.sketch import candidates

    added = [record.id for record in new]
    old = sorted(set(member_ids) - set(added))
    unread: Unread = {}
    sketches = _sketches(store, [*old, *added], added, unread)
    ids = [(patch_id, data) for patch_id in (*old, *added) for data in sketches[patch_id]]
    fresh = [(patch_id, data) for patch_id in added for data in sketches[patch_id]]
    order = {patch_id: number for number, patch_id in enumerate((*old, *added))}
    pairs = {
        (fresh[one][0], ids[other][0])
        for one, other in candidates([data for _, data in fresh], [data for _, data in ids])
        if order[ids[other][0]] < order[fresh[one][0]]
    }
    found = []
    for one, other in sorted(pairs, key=lambda pair: (order[pair[0]], pair[1])):
        mine = store.blobs.get(one)
        try:
            its = store.blobs.get(other)
        except (StoreError, PatchFileError) as error:
            unread.setdefault(other, (error, []))[1].append(one)
        else:
            found.append(_compared(store, mine, its, together=other in added))
    _check_unread(store, unread)
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


def contradicting_members(store: OpenStore, member_ids: Iterable[str], new: Sequence[PatchRecord]) -> tuple[Pair, ...]:
    """The pairs of one of *new* and a member that contradict each other by their keys, for patches that come from
    another stack, where they agreed with each other. Writes sketches that are missing.

    Raises:
        StoreError, PatchFileError: as for :func:`same_keys`.
    """
    alike = same_keys(store, member_ids, new) if new else ()
    return tuple((pair.new, pair.other) for pair in alike if pair.contradicts and not pair.together)


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


def _check_unread(store: OpenStore, unread: Unread) -> None:
    """Whether members whose files cannot be read could contradict new patches if their keys were one; a note if not.

    Raises:
        StoreError: one could.
    """
    for record in store.ledger.records(unread):
        error, compared = unread[record.id]
        for patch in store.ledger.records(compared):
            if _could_contradict(patch, record):
                raise StoreError(
                    f"Whether patch {patch.label} contradicts {record.label} cannot be told: both are about one "
                    f"relation, and their keys cannot be compared. {error.message}",
                    next_step="Restore the file from a backup or compute the patch anew, or do without it: "
                    f"`rompatch revert {record.short_id}`. `rompatch fsck` names every such loss.",
                    patch_id=record.id,
                    new_id=patch.id,
                )
        store.reporter.note(
            f"the file of patch {record.label} cannot be read, so its key was not compared; it is about something "
            f"else: `rompatch fsck` says more, `rompatch revert {record.short_id}` takes it off"
        )


def _could_contradict(new: PatchRecord, other: PatchRecord) -> bool:
    """Whether the two would contradict each other if their keys were one."""
    one, two = new.header.request, other.header.request
    if one is None or two is None or same_text(one.target_new, two.target_new):
        return False
    sites = [{site.parameter for site in record.header.sites} for record in (new, other)]
    return not sites[0].isdisjoint(sites[1]) and same_fact(one, two)


def _compared(store: OpenStore, mine: Patch, its: Patch, *, together: bool) -> SameKey | None:
    from rompatch.apply.gram import constraints_of, key_similarity
    from rompatch.apply.solve import SAME_KEY

    sites = [
        {
            site.parameter: factors
            for site, factors in zip(patch.header.sites, patch.factors, strict=True)
            if isinstance(factors, SiteFactors)
        }
        for patch in (mine, its)
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
    new, other = store.ledger.patch(mine.id), store.ledger.patch(its.id)
    return SameKey(new, other, alike, _could_contradict(new, other), together)


def _sketches(
    store: OpenStore, ids: Sequence[str], added: Sequence[str], unread: Unread
) -> dict[str, tuple[bytes, ...]]:
    """Of each patch, from the ledger; those that have none get theirs from their file, once. A member whose file cannot
    be read has none, and goes into *unread*, to be judged beside all of *added*."""
    from rompatch.apply.sketch import sketches_of

    known = store.ledger.key_sketches(ids)
    missing = [patch_id for patch_id in ids if None in known.get(patch_id, (None,))]
    made: dict[str, tuple[bytes, ...]] = {}
    for done, patch_id in enumerate(missing, 1):
        try:
            made[patch_id] = sketches_of(store.blobs.get(patch_id))
        except (StoreError, PatchFileError) as error:
            if patch_id in added:
                raise
            unread[patch_id] = error, list(added)
        store.reporter.step("reading keys", done, len(missing))
    if made:
        store.ledger.fill_key_sketches(made)
    whole = {patch_id: made.get(patch_id, known.get(patch_id, ())) for patch_id in ids}
    return {patch_id: tuple(data for data in sketches if data is not None) for patch_id, sketches in whole.items()}
