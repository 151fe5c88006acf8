"""Whether a planned apply passes the store's gates. A store without gates is asked one setting and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rompatch.store.records import PatchRecord, StackRecord
from rompatch.workflows.gates import GateResult
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.stack_gates import (
    DRIFT,
    FORECAST,
    check_forecasts,
    check_overrides,
    check_verified,
    configured,
    enforce,
)


def gatekept(
    store: OpenStore,
    stack: StackRecord | None,
    new: Sequence[PatchRecord],
    removed: Sequence[PatchRecord],
    *,
    override: Sequence[str],
    reason: str | None,
) -> dict[str, Any]:
    """What the revision's details say about gates that are passed over; empty where all are met. Reads only.

    Args:
        stack: as it is; None where it is still to be made.
        new, removed: what is to be put on and taken off.
        override, reason: as for :func:`rompatch.workflows.stack_gates.enforce`.

    Raises:
        GateError: a gate is missed that *override* does not name.
        RequestError: an override without a reason, or of an unknown gate.
    """
    check_overrides(override, reason)
    limits = configured(store)
    if not limits:
        return {}
    results = check_verified(store, new, limits)
    after = would_be(store, stack, new, removed)
    if FORECAST & limits.keys():
        from rompatch.workflows.site_forecasts import forecasts

        results += check_forecasts([(site.parameter, site.forecast) for site in forecasts(store, after)], limits)
    if DRIFT in limits:
        results += (GateResult(DRIFT, None, limits[DRIFT], None, "drift was not measured: apply with --verify"),)
    return enforce(results, after, override=override, reason=reason)


def would_be(
    store: OpenStore, stack: StackRecord | None, new: Sequence[PatchRecord], removed: Sequence[PatchRecord]
) -> tuple[PatchRecord, ...]:
    """The patches of the stack after the change, in canonical order. Reads only."""
    members = () if stack is None else store.ledger.members(stack, stack.revision)
    leaving = {record.id for record in removed}
    after = {record.id: record for record in (*members, *new) if record.id not in leaving}
    return tuple(after[patch_id] for patch_id in sorted(after))
