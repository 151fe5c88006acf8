"""Gates that a store holds for every apply: set once, enforced each time, passed over only with a recorded reason.

max_delta_norm      ||Delta_S|| / ||W|| of any weight, at most
max_interference    harm that one patch's update alone would do to another's key, at most (docs/algebra.md)
min_S               S of the latest recorded verification of each new patch, at least
max_drift           rise of perplexity through the whole stack, at most; measured by ``apply --verify``
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rompatch.errors import GateError, RequestError
from rompatch.store.records import PatchRecord
from rompatch.workflows.gates import REWRITE, GateResult, finite, missed_reasons
from rompatch.workflows.opened import OpenStore

if TYPE_CHECKING:
    from rompatch.apply.forecast import SiteForecast

DELTA_NORM, INTERFERENCE, LEAST_S, DRIFT = "max_delta_norm", "max_interference", "min_S", "max_drift"
GATES = (DELTA_NORM, INTERFERENCE, LEAST_S, DRIFT)
FORECAST = frozenset((DELTA_NORM, INTERFERENCE))
OVERRIDABLE = (*GATES, REWRITE)
"""``rewrite`` is no setting: `apply --verify` always asks that every rewrite prompt passes."""

SETTING = "gates"
_LISTED = 5


def configured(store: OpenStore) -> dict[str, float]:
    """The store's gates by name: fractions, and plain numbers for the forecast's. Reads only."""
    saved = store.ledger.setting(SETTING, {})
    return {name: float(saved[name]) for name in GATES if name in saved}


def set_gates(store: OpenStore, limits: Mapping[str, float]) -> dict[str, float]:
    """Set some gates; the others stay. Writes. All of them afterwards.

    Raises:
        RequestError: an unknown gate, or a limit out of its range.
    """
    for name, limit in limits.items():
        check_name(name)
        top = 1.0 if name == LEAST_S else math.inf
        if not (0 <= limit <= top and math.isfinite(limit)):
            raise RequestError(
                f"The gate {name} cannot be {limit:g}.",
                expected="a fraction between 0 and 1" if top == 1 else "a finite number, 0 or more",
            )
    with store.ledger.transaction() as ledger:
        after = {**configured(store), **{name: float(limit) for name, limit in limits.items()}}
        ledger.set_setting(SETTING, after)
    return configured(store)


def unset_gates(store: OpenStore, names: Sequence[str]) -> dict[str, float]:
    """Remove gates; one that is not set is no error. Writes. Those that are left.

    Raises:
        RequestError: an unknown gate.
    """
    for name in names:
        check_name(name)
    with store.ledger.transaction() as ledger:
        after = {name: limit for name, limit in configured(store).items() if name not in names}
        ledger.set_setting(SETTING, after)
    return after


def check_name(name: str, among: Sequence[str] = GATES) -> None:
    """Whether there is a gate of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in among:
        close = difflib.get_close_matches(name.lower(), [gate.lower() for gate in among], n=1)
        meant = next((gate for gate in among if close and gate.lower() == close[0]), None)
        raise RequestError(
            f"There is no gate {name!r}.",
            expected=", ".join(among),
            next_step=f"Did you mean {meant!r}?" if meant else None,
        )


def check_verified(
    store: OpenStore, records: Sequence[PatchRecord], limits: Mapping[str, float]
) -> tuple[GateResult, ...]:
    """min_S for each of *records*, by its latest verification in the ledger. Reads only."""
    if LEAST_S not in limits:
        return ()
    return tuple(_verified(store, record, limits[LEAST_S]) for record in records)


def _verified(store: OpenStore, record: PatchRecord, least: float) -> GateResult:
    runs = store.ledger.verifications(record.id, limit=1)
    value = runs[0].score("s") if runs else None
    if not runs:
        reason = f"never verified, and S of at least {100 * least:.1f} is wanted: `rompatch verify {record.short_id}`"
    elif value is None:
        reason = f"S was not measured by run {runs[0].id}, at least {100 * least:.1f} wanted"
    else:
        reason = "" if value >= least else f"S {100 * value:.1f} in run {runs[0].id}, at least {100 * least:.1f} wanted"
    return GateResult(LEAST_S, record.id, least, value, reason)


def check_forecasts(sites: Sequence[tuple[str, SiteForecast]], limits: Mapping[str, float]) -> tuple[GateResult, ...]:
    """max_delta_norm and max_interference on each weight of the would-be stack."""
    found = []
    for parameter, forecast in sites:
        if DELTA_NORM in limits:
            found.append(_norm(parameter, forecast, limits[DELTA_NORM]))
        if INTERFERENCE in limits:
            value, most = forecast.worst, limits[INTERFERENCE]
            reason = "" if value <= most else f"interference {value:.2f} at {parameter}, at most {most:.2f} allowed"
            found.append(GateResult(INTERFERENCE, None, most, value, reason))
    return tuple(found)


def _norm(parameter: str, forecast: SiteForecast, most: float) -> GateResult:
    value = forecast.relative_norm
    if value is None:
        reason = f"the norm of {parameter} is not known: no patch there says what it was"
    else:
        reason = "" if value <= most else f"||Delta|| is {value:.3f} ||W|| at {parameter}, at most {most:.3f} allowed"
    return GateResult(DELTA_NORM, None, most, value, reason)


def enforce(
    results: Sequence[GateResult],
    records: Sequence[PatchRecord],
    *,
    override: Sequence[str] = (),
    reason: str | None = None,
) -> dict[str, Any]:
    """Refuse what misses a gate that is not overridden; what a revision's details say about those that are.

    Args:
        results: every gate with what was found.
        records: patches by which messages name them.
        override: names of gates that may be missed.
        reason: why; must be given with *override*.

    Raises:
        GateError: a gate was missed.
        RequestError: an override without a reason, or of an unknown gate.
    """
    check_overrides(override, reason)
    labels = {record.id: record.label for record in records}
    refused = [result for result in results if not result.passed and result.gate not in override]
    if refused:
        missed = missed_reasons(refused, labels)
        names = " ".join(f"--override {name}" for name in dict.fromkeys(result.gate for result in refused))
        more = f"; and {len(missed) - _LISTED} more" if len(missed) > _LISTED else ""
        raise GateError(
            "The gates forbid this apply; nothing was changed.",
            found="; ".join(missed[:_LISTED]) + more,
            next_step=f'Apply something else, or pass over them: `{names} --reason "..."`, which is recorded.',
            missed=missed,
        )
    overridden = [result for result in results if not result.passed]
    return {"overridden": [_detail(result) for result in overridden]} if overridden else {}


def check_overrides(override: Sequence[str], reason: str | None) -> None:
    """Raises RequestError for an override without a reason, or of an unknown gate."""
    for name in override:
        check_name(name, OVERRIDABLE)
    if override and not (reason and reason.strip()):
        raise RequestError("A gate is overridden with a reason.", next_step='Say why: --reason "...".')


def _detail(result: GateResult) -> dict[str, Any]:
    return {
        "gate": result.gate,
        "patch_id": result.patch_id,
        "limit": result.limit,
        "value": finite(result.value),
        "found": result.reason,
    }
