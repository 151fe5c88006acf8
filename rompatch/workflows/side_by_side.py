"""Scores of patches and of what they became on another base, each alone on its own base, on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rompatch.errors import ModelError, RompatchError
from rompatch.store.records import PatchRecord
from rompatch.workflows.baselines import Alone, own_suite, recorded_alone, scored_alone
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.rebased import RebasedPatch, RebaseOptions
from rompatch.workflows.verifying import record_patch

if TYPE_CHECKING:
    from rompatch.models import Base
    from rompatch.verify.metrics import Scores
    from rompatch.verify.suite import Suite


def with_scores(
    store: OpenStore, base: Base, found: Sequence[RebasedPatch], options: RebaseOptions
) -> list[RebasedPatch]:
    """*found* with the scores of old and new patches, where there is a new one. Writes a run for each patch that was
    scored here; what the ledger has of the same prompts is taken from there, so the old base is often not loaded."""
    pairs = [(one, one.new) for one in found if one.new is not None]
    suites: dict[str, Suite] = {}
    for one, new in pairs:
        suites[one.old.id] = suites[new.id] = own_suite(store, one.old)
    after = _scores(store, [new for _, new in pairs], suites, base)
    before = _scores(store, [one.old for one, _ in pairs], suites, None, options)
    scored = {one.old.id: (before.get(one.old.id), after.get(new.id)) for one, new in pairs}
    return [
        replace(one, before=_of(scored[one.old.id][0]), after=_of(scored[one.old.id][1]))
        if one.old.id in scored
        else one
        for one in found
    ]


def _of(alone: Alone | None) -> Scores | None:
    return None if alone is None else alone.after.scores


def _scores(
    store: OpenStore,
    records: Sequence[PatchRecord],
    suites: Mapping[str, Suite],
    base: Base | None,
    options: RebaseOptions | None = None,
) -> dict[str, Alone]:
    """Each record scored alone, by id; what cannot be scored is left out with a note. *base* None: the records' own."""
    known = {record.id: recorded_alone(store, record, suites[record.id]) for record in records}
    found = {patch_id: alone for patch_id, alone in known.items() if alone is not None}
    missing = [record for record in records if record.id not in found]
    if not missing:
        return found
    if base is None:
        try:
            base = store.base(store.spec_for(missing), device="cpu" if options is None else options.device)
        except ModelError as problem:
            store.reporter.note(f"the old base cannot be loaded, so its patches are not scored: {problem.message}")
            return found
    for record, alone in _scored(store, base, missing, suites):
        found[record.id] = alone
        if alone.before is not None:
            record_patch(store, record, alone.before, alone.after, [record.id], None)
    return found


def _scored(
    store: OpenStore, base: Base, records: Sequence[PatchRecord], suites: Mapping[str, Suite]
) -> list[tuple[PatchRecord, Alone]]:
    """All at once; where that fails, one by one, so that one that cannot be scored takes no other with it."""
    try:
        scored = scored_alone(store, base, [(record, store.blobs.get(record.id)) for record in records], suites)
    except RompatchError as problem:
        if len(records) == 1:
            store.reporter.note(f"patch {records[0].label} cannot be scored: {problem.message}")
            return []
        return [pair for record in records for pair in _scored(store, base, [record], suites)]
    return [(record, scored[record.id]) for record in records]
