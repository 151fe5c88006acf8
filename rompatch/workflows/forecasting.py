"""apply --plan: what the stack would become, told from the patch files before anything changes. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.errors import StoreError
from rompatch.patch import Patch
from rompatch.store.plan import check_push
from rompatch.store.records import PatchRecord, StackRecord
from rompatch.workflows.gates import GateResult, finite, missed_reasons
from rompatch.workflows.opened import MAIN_STACK, OpenStore
from rompatch.workflows.stack_gates import check_forecasts, check_verified, configured

if TYPE_CHECKING:
    from rompatch.apply.forecast import Pair, SiteForecast

PAIRS_IN_JSON = 100


@dataclass(frozen=True)
class SitePlan:
    """One weight of the would-be stack: the patches there, in canonical order, and their forecast."""

    parameter: str
    patches: tuple[PatchRecord, ...]
    forecast: SiteForecast

    def to_json(self, threshold: float) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        found = self.forecast
        ids = [patch.id for patch in self.patches]
        return {
            "parameter": self.parameter,
            "patches": ids,
            "rank": found.rank,
            "condition": finite(found.condition),
            "delta_norm": found.delta_norm,
            "relative_norm": found.relative_norm,
            "max_interference": finite(found.worst),
            "residuals": [finite(round(float(value), 6)) for value in found.residuals],
            "shared_keys": [[ids[one], ids[other]] for one, other in found.shared],
            "pairs": [self._pair(pair) for pair in found.pairs(threshold)[:PAIRS_IN_JSON]],
            "n_pairs": len(found.pairs(threshold)),
            "interference": [[finite(round(float(value), 6)) for value in row] for row in found.ratio],
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        source, target = self.patches[pair.source].id, self.patches[pair.target].id
        return {"source": source, "target": target, "ratio": finite(pair.ratio), "harm": finite(pair.harm)}


@dataclass(frozen=True)
class StackPlan:
    """What the stack would be after an apply.

    Args:
        stack: the stack as it is; revision 0 and no members where there is none yet.
        adding: the patches that would join.
        members: every patch of the would-be stack, in canonical order.
        sites: the forecast of each weight, by name.
        gates: the store's gates that can be judged without a model, and what was found.
        threshold: harm from which pairs are named.
    """

    stack: StackRecord
    adding: tuple[PatchRecord, ...]
    members: tuple[PatchRecord, ...]
    sites: tuple[SitePlan, ...]
    gates: tuple[GateResult, ...]
    threshold: float

    @property
    def missed_gates(self) -> tuple[str, ...]:
        """The gates that would be missed, in words."""
        return missed_reasons(self.gates, {record.id: record.label for record in self.members})

    def neighbours(self) -> tuple[PatchRecord, ...]:
        """The patches already active that the new ones disturb most: all of which a pair is named, worst first."""
        new = {record.id for record in self.adding}
        harms: dict[str, float] = {}
        records = {record.id: record for record in self.members}
        for site in self.sites:
            sources = [index for index, record in enumerate(site.patches) if record.id in new]
            for record, harm in zip(site.patches, site.forecast.disturbed_by(sources), strict=True):
                if record.id not in new and harm > self.threshold:
                    harms[record.id] = max(harms.get(record.id, 0.0), float(harm))
        return tuple(records[patch_id] for patch_id in sorted(harms, key=lambda one: (-harms[one], one)))

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "stack": self.stack.name,
            "revision": self.stack.revision,
            "adding": [record.id for record in self.adding],
            "members": [record.id for record in self.members],
            "threshold": self.threshold,
            "sites": [site.to_json(self.threshold) for site in self.sites],
            "neighbours": [record.id for record in self.neighbours()],
            "gates": [result.to_json() for result in self.gates],
            "missed_gates": list(self.missed_gates),
        }


def plan(
    store: OpenStore, names: Sequence[str], *, threshold: float | None = None, without: Iterable[str] = ()
) -> StackPlan:
    """What applying *names* to the active stack would give; of the stack as it is without names. Reads only.

    Args:
        threshold: harm from which pairs are named; by default :data:`rompatch.apply.forecast.NOTABLE`.
        without: ids of members that would leave (superseded ones).

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        ConflictError, BaseMismatchError: apply would refuse them.
        StoreError, PatchFileError: a patch's file is missing or damaged.
        ComputeError: the stack could not be solved.
    """
    from rompatch.apply.forecast import NOTABLE

    with store.ledger.session.reading():
        adding = tuple({record.id: record for record in map(store.resolve, names)}.values())
        stack, members = _stack(store, adding)
        leaving = set(without)
        members = tuple(record for record in members if record.id not in leaving)
        limits = configured(store)
        if names:
            check_push(stack, members, adding)
        after = tuple(sorted({record.id: record for record in (*members, *adding)}.values(), key=lambda one: one.id))
        gates = check_verified(store, adding, limits)
    sites = forecasts(store, after)
    gates += check_forecasts([(site.parameter, site.forecast) for site in sites], limits)
    return StackPlan(stack, adding, after, sites, gates, NOTABLE if threshold is None else threshold)


def forecasts(store: OpenStore, records: Sequence[PatchRecord]) -> tuple[SitePlan, ...]:
    """The forecast of each weight that *records* (a whole stack) change, from their files. Reads only."""
    from rompatch.apply.forecast import forecast_site
    from rompatch.apply.solve import members_by_site

    known = {record.id: record for record in records}
    norms = weight_norms(records)
    patches: list[Patch] = []
    for done, record in enumerate(records, 1):
        patches.append(store.blobs.get(record.id))
        store.reporter.step("reading patches", done, len(records))
    return tuple(
        SitePlan(
            parameter,
            tuple(known[patch.id] for patch, _ in pairs),
            forecast_site([factors for _, factors in pairs], weight_norm=norms.get(parameter)),
        )
        for parameter, pairs in members_by_site(patches).items()
    )


def weight_norms(records: Iterable[PatchRecord]) -> Mapping[str, float]:
    """||W||_F by parameter, as it was measured when a patch there was computed; weights nobody measured are absent."""
    found: dict[str, float] = {}
    for record in records:
        norm = (record.measurements.get("norms") or {}).get("weight")
        if len(record.header.sites) == 1 and isinstance(norm, int | float) and norm > 0:
            found.setdefault(record.header.sites[0].parameter, float(norm))
    return found


def _stack(store: OpenStore, adding: Sequence[PatchRecord]) -> tuple[StackRecord, tuple[PatchRecord, ...]]:
    """The active stack with its members; an empty one on the base of the new patches where there is none, or where it
    is empty and on another base (apply makes a new one then)."""
    stack = store.stack()
    members = () if stack is None else store.ledger.members(stack)
    if stack is not None and (members or not adding or stack.base_id == adding[0].base_id):
        return stack, members
    if not adding:
        raise StoreError("There is no stack yet, so there is nothing to forecast.", next_step="Name patches to apply.")
    return StackRecord(MAIN_STACK if stack is None else stack.name, adding[0].base_id, 0), ()
