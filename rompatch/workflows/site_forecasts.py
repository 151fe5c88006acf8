"""The forecast of each weight that a stack changes, from its patches' files. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.patch import Patch
from rompatch.store.records import PatchRecord
from rompatch.workflows.gates import finite
from rompatch.workflows.opened import OpenStore

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
        for parameter, norm in _measured_norms(record):
            if isinstance(norm, int | float) and norm > 0:
                found.setdefault(parameter, float(norm))
    return found


def _measured_norms(record: PatchRecord) -> Iterator[tuple[str, object]]:
    """Parameter and norm of each weight that *record* measured; older records have the norm of their one weight."""
    measured = record.measurements.get("norms") or {}
    norms = measured.get("weights") or [measured.get("weight")]
    if len(norms) == len(record.header.sites):
        yield from zip((site.parameter for site in record.header.sites), norms, strict=True)


def disturbed(
    sites: Iterable[SitePlan], new: Iterable[PatchRecord], threshold: float | None = None
) -> tuple[PatchRecord, ...]:
    """The other patches that *new* together may disturb by more than *threshold*, the most disturbed first."""
    from rompatch.apply.forecast import NOTABLE

    least = NOTABLE if threshold is None else threshold
    added = {record.id for record in new}
    harms: dict[str, float] = {}
    records: dict[str, PatchRecord] = {}
    for site in sites:
        sources = [index for index, record in enumerate(site.patches) if record.id in added]
        for record, harm in zip(site.patches, site.forecast.disturbed_by(sources), strict=True):
            if record.id not in added and harm > least:
                records[record.id] = record
                harms[record.id] = max(harms.get(record.id, 0.0), float(harm))
    return tuple(records[patch_id] for patch_id in sorted(harms, key=lambda one: (-harms[one], one)))
