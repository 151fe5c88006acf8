"""apply --verify: the stack that would be is scored first, and applied only if nothing is lost.

The stack stays as it was where a gate is missed, unless that gate is overridden: what nobody wants is never in force,
not even for a moment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rompatch.store.records import RevisionRecord, StackRecord
from rompatch.workflows.gatekeeping import would_be
from rompatch.workflows.gates import GateResult
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.site_forecasts import disturbed, forecasts
from rompatch.workflows.stack_gates import (
    DRIFT,
    check_forecasts,
    check_overrides,
    check_verified,
    configured,
    enforce,
)
from rompatch.workflows.stack_recording import record_scored, report
from rompatch.workflows.stack_report import StackVerified
from rompatch.workflows.stack_scoring import Scored, StackVerifyOptions, drift_text, load_stack, score_stack
from rompatch.workflows.stacking import ApplyPlan, commit, note_sharing, plan_apply, provenance


@dataclass(frozen=True)
class AppliedVerified:
    """An apply that was verified first.

    Args:
        revision: the new revision.
        verified: every patch of the stack, scored before it was in force.
        named: ids of the patches that were scored first: the new ones, and those that the forecast named.
    """

    revision: RevisionRecord
    verified: StackVerified
    named: tuple[str, ...]


def apply_verified(
    store: OpenStore,
    names: Sequence[str],
    *,
    supersede: bool = False,
    message: str | None = None,
    reason: str | None = None,
    source: str | None = None,
    expires: str | None = None,
    override: Sequence[str] = (),
    **base: Any,
) -> AppliedVerified:
    """Put patches onto the stack if the stack that they make keeps what it has to: every rewrite prompt of every patch,
    and the store's gates. Writes one revision and one run, or nothing.

    The new patches and those that the forecast names are scored first; where one of them fails, the rest is not scored.

    Args:
        supersede, message, reason, source, expires, override: as for :func:`rompatch.workflows.stacking.apply`;
            "rewrite" may be overridden too.
        base: ``spec``, or ``model``, ``dtype``, ``module``; ``device``.

    Raises:
        GateError: a gate is missed, or a rewrite lost; nothing has changed.
        StaleStackError: somebody changed the stack meanwhile.
        RompatchError: what :func:`rompatch.workflows.stacking.apply` and ``verify_stack`` raise.
    """
    known = provenance(source, expires)
    check_overrides(override, reason)
    plan = plan_apply(store, names, supersede=supersede)
    limits, after = configured(store), would_be(store, plan.stack, plan.new, plan.removed)
    sites = forecasts(store, after)
    results = check_verified(store, plan.new, limits)
    results += check_forecasts([(site.parameter, site.forecast) for site in sites], limits)
    enforce(results, after, override=override, reason=reason)  # before a model is loaded
    named = tuple(dict.fromkeys([one.id for one in (*plan.new, *disturbed(sites, plan.new))]))
    options = StackVerifyOptions(drift=DRIFT in limits, max_drift=limits.get(DRIFT), baseline=False, **base)
    loaded = load_stack(store, _next(plan), after)
    started = time.monotonic()
    first = score_stack(store, loaded, replace(options, drift=False, max_drift=None), (None, ""), only=named)
    enforce(first.gates, after, override=override, reason=reason)
    others = [record.id for record in after if record.id not in named]
    rest = score_stack(store, loaded, options, drift_text(options), only=others)
    scored = Scored((*first.checks, *rest.checks), rest.drift, rest.drift_text, (*first.gates, *rest.gates), {})
    seconds = time.monotonic() - started
    details = enforce([*results, *map(_named, scored.gates)], after, override=override, reason=reason)
    with store.ledger.transaction():
        revision = commit(store, plan, known, message=message, reason=reason, details=details)
        stack = StackRecord(revision.stack, after[0].base_id, revision.number)
        loaded = replace(loaded, stack=stack)
        run, checks = record_scored(store, loaded, scored, revision.number)
    note_sharing(store, plan)
    return AppliedVerified(revision, report(loaded, scored, checks, run, revision.number, seconds), named)


def _next(plan: ApplyPlan) -> StackRecord:
    """The stack as it will be called after the apply."""
    number = 0 if plan.stack is None else plan.stack.revision
    return StackRecord(plan.stack_name, plan.new[0].base_id, number + 1)


def _named(result: GateResult) -> GateResult:
    """The gate by the name that it is set and overridden by."""
    return replace(result, gate=DRIFT) if result.gate == "drift" else result
