"""What a store has already that bears on a new patch: the same patch, others on the same fact, the active stack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rompatch.edits import EditRequest, same_text
from rompatch.patch import PatchHeader
from rompatch.store.patches import base_id, now
from rompatch.store.plan import check_push
from rompatch.store.records import PatchRecord
from rompatch.workflows.conflicts import contradictions, refused, same_wording
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.statistics import AUTOMATIC, NO_STATISTICS

if TYPE_CHECKING:
    from rompatch.patch import StatisticsRef

UNSAID = {"optimiser": "adam", "target_loss": 0.0, "value_contexts": 21, "norm_penalty": 0.0, "gain": 1.0, "spread": 1}
"""What patches mean that were made before these hyper-parameters existed."""

TO_BE_MADE = "to be made"
"""What messages call a patch that has no id yet."""


def on_same_fact(store: OpenStore, base: str, request: EditRequest) -> tuple[PatchRecord, ...]:
    """Patches of the base of id *base* with the request's subject and its template or relation phrase, newest first.

    One phrase may have led to another template then: with other settings the model prefers another wording.
    """
    return tuple(
        record
        for record in store.ledger.patches(request.subject, base_id=base)
        if record.header.request is not None and same_wording(record.request, request)
    )


def made_so(
    records: Iterable[PatchRecord], header: PatchHeader, statistics: str, true: str | None = None
) -> PatchRecord | None:
    """The first of *records* that a computation with the settings in *header* would make again.

    Args:
        header: of the patch to be made; its versions, contexts and statistics are not looked at.
        statistics: what was asked for: "auto" takes a patch with any, "none" one without, else an id or its beginning.
        true: the true object that was asked for; None takes a patch with any.
    """
    request = header.request
    assert request is not None  # what is to be computed answers one
    return next(
        (
            record
            for record in records
            if _settings(record.header) == _settings(header)
            and same_text(record.request.template, request.template)
            and same_text(record.request.target_new, request.target_new)
            and (true is None or same_text(record.request.target_true or "", true))
            and _has(record.header.statistics, statistics)
        ),
        None,
    )


def difference(record: PatchRecord, request: EditRequest) -> str:
    """A note that *record* exists, and how it differs from a patch for *request* that is about to be made."""
    if not same_text(record.request.target_new, request.target_new):
        return f"patch {record.label} exists for the same subject and relation, with another object"
    if not same_text(record.request.template, request.template):
        return f"patch {record.label} exists for the same subject and relation, with another prompt"
    return f"patch {record.label} exists for the same request with other settings"


def check_apply(store: OpenStore, header: PatchHeader, patch_id: str = TO_BE_MADE) -> None:
    """Whether a patch with *header* is active, or could be applied once it is made. Reads only.

    Raises:
        ConflictError: it would contradict an active patch.
        BaseMismatchError: the active stack is on another base.
    """
    stack = store.stack()
    active = () if stack is None else store.ledger.member_ids(stack)
    if stack is None or not active or patch_id in active:  # an empty stack of another base gives way
        return
    patch = PatchRecord(
        id=patch_id,
        base_id=base_id(header.base),
        header=header,
        file_size=0,
        created_at=now(),
        author=None,
        message=None,
        measurements={},
    )
    check_push(stack, [], [patch])
    rivals = store.ledger.rivals(stack, [patch])
    if pairs := contradictions([patch], rivals):
        raise refused(stack.name, pairs)
    check_push(stack, rivals, [patch])


def _settings(header: PatchHeader) -> tuple[object, ...]:
    layers = tuple(site.layer for site in header.sites)
    hparams = {**UNSAID, "precision": header.base.dtype, **header.hparams}
    return header.method, layers, hparams, header.seed, header.document_start


def _has(used: StatisticsRef | None, wanted: str) -> bool:
    if wanted == AUTOMATIC:
        return True
    if wanted == NO_STATISTICS or used is None:
        return wanted == NO_STATISTICS and used is None
    return used.id.startswith(wanted.lower())
