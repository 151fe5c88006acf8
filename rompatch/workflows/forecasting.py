"""apply --plan: what the stack would become, told from the patch files before anything changes. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.errors import StoreError
from rompatch.store.records import PatchRecord, StackRecord
from rompatch.workflows.gatekeeping import would_be
from rompatch.workflows.gates import GateResult, missed_reasons
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.site_forecasts import SitePlan, disturbed, forecasts
from rompatch.workflows.stack_gates import check_forecasts, check_verified, configured
from rompatch.workflows.stacking import none_active, plan_apply


@dataclass(frozen=True)
class StackPlan:
    """What the stack would be after an apply.

    Args:
        stack: the stack as it is; revision 0 and no members where there is none yet.
        adding: the patches that would join.
        removing: those that they would supersede.
        members: every patch of the would-be stack, in canonical order.
        sites: the forecast of each weight, by name.
        gates: the store's gates that can be judged without a model, and what was found.
        threshold: harm from which pairs are named.
    """

    stack: StackRecord
    adding: tuple[PatchRecord, ...]
    removing: tuple[PatchRecord, ...]
    members: tuple[PatchRecord, ...]
    sites: tuple[SitePlan, ...]
    gates: tuple[GateResult, ...]
    threshold: float

    @property
    def missed_gates(self) -> tuple[str, ...]:
        """The gates that would be missed, in words."""
        return missed_reasons(self.gates, {record.id: record.label for record in self.members})

    def neighbours(self) -> tuple[PatchRecord, ...]:
        """The patches already active that the new ones disturb, the most disturbed first."""
        return disturbed(self.sites, self.adding, self.threshold)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "stack": self.stack.name,
            "revision": self.stack.revision,
            "adding": [record.id for record in self.adding],
            "removing": [record.id for record in self.removing],
            "members": [record.id for record in self.members],
            "threshold": self.threshold,
            "sites": [site.to_json(self.threshold) for site in self.sites],
            "neighbours": [record.id for record in self.neighbours()],
            "gates": [result.to_json() for result in self.gates],
            "missed_gates": list(self.missed_gates),
        }


def plan(
    store: OpenStore, names: Sequence[str], *, supersede: bool = False, threshold: float | None = None
) -> StackPlan:
    """What applying *names* to the active stack would give; of the stack as it is without names. Writes nothing but
    sketches of keys (:mod:`rompatch.workflows.same_keys`).

    Args:
        supersede: as for :func:`rompatch.workflows.stacking.apply`.
        threshold: harm from which pairs are named; by default :data:`rompatch.apply.forecast.NOTABLE`.

    Raises:
        PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        ConflictError, BaseMismatchError: apply would refuse them; or no stack is active.
        StoreError, PatchFileError: there is no stack yet, or a patch's file is missing or damaged.
        ComputeError: the stack could not be solved.
    """
    from rompatch.apply.forecast import NOTABLE

    stack, adding, removing = _changes(store, names, supersede)
    after = would_be(store, stack if stack.revision else None, adding, removing)
    limits = configured(store)
    gates = check_verified(store, adding, limits)
    sites = forecasts(store, after)
    gates += check_forecasts([(site.parameter, site.forecast) for site in sites], limits)
    return StackPlan(stack, adding, removing, after, sites, gates, NOTABLE if threshold is None else threshold)


def _changes(
    store: OpenStore, names: Sequence[str], supersede: bool
) -> tuple[StackRecord, tuple[PatchRecord, ...], tuple[PatchRecord, ...]]:
    """The stack, what would join and what would leave."""
    if names:
        planned = plan_apply(store, names, supersede=supersede)
        new = planned.new
        return planned.stack or StackRecord(planned.stack_name, new[0].base_id, 0), new, planned.removed
    stack = store.stack()
    if stack is None:
        if others := store.ledger.stacks():
            raise none_active(others)
        raise StoreError("There is no stack yet, so there is nothing to forecast.", next_step="Name patches to apply.")
    return stack, (), ()
