"""Many facts on one loaded base: planned in windows, computed together, each patch committed as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rompatch.errors import BaseMismatchError, ConflictError, RompatchError, StoreError
from rompatch.facts.reading import FactLine
from rompatch.store.records import PatchRecord
from rompatch.workflows import existing
from rompatch.workflows.computing import Computed, Workshop, compute_plans, workshop
from rompatch.workflows.keeping import keep
from rompatch.workflows.many_outcomes import EXISTED, MADE, PLANNED, FactOutcome
from rompatch.workflows.method_options import EditSetting, RecordingOptions
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.planning import Plan, made_before, plan_fact

WINDOW = 64
"""Facts that are planned before their patches are computed: enough to fill batches, few enough to begin soon."""


@dataclass(frozen=True)
class CreateManyOptions(RecordingOptions):
    """What ``create_many`` may be told beside base, method and records; a line's own message, source and expiry win.

    Args:
        jobs: processes that share the work; each loads the base.
        out: a new file for the lines that failed.
    """

    jobs: int = 1
    out: Path | None = None


def make_patches(
    store: OpenStore, setting: EditSetting, facts: Sequence[FactLine], options: CreateManyOptions
) -> Iterator[FactOutcome]:
    """What became of each of *facts*, as soon as it is known (so not in their order). Writes.

    Raises:
        BaseMismatchError: with ``apply``, the stack in force is on another base; nothing is computed.
        StatisticsError, StoreError, OutputError: nothing more can be made; what was made before stays.
    """
    shop: Workshop | None = None
    waiting: list[tuple[FactLine, Plan]] = []
    for number, one in enumerate(facts, 1):
        found = _planned(store, setting, one, options)
        if isinstance(found, FactOutcome):
            yield found
        elif options.dry_run:
            yield FactOutcome(one.number, PLANNED, one.fact, found.request.prompt)
        else:
            waiting.append((one, found))
        if len(waiting) == WINDOW or (waiting and number == len(facts)):
            shop = shop or workshop(setting, store.reporter)
            yield from _made(store, shop, waiting, options)
            waiting = []


def _planned(store: OpenStore, setting: EditSetting, one: FactLine, options: CreateManyOptions) -> FactOutcome | Plan:
    """The plan for a fact, or what became of it where nothing is left to compute."""
    fact = one.fact
    try:
        same = None if options.again else made_before(store, setting, fact)
        if same is None:
            plan = plan_fact(store, setting, fact)
            same = None if options.again else _same(setting, plan, one)
        if same is not None:
            if options.apply:
                existing.check_apply(store, same.header, same.id)
            return _existed(one, same)
        if options.apply:
            existing.check_apply(store, setting.header(plan.request))
    except RompatchError as problem:
        if _is_about_all(problem):
            raise
        return FactOutcome.failure(one.number, problem, fact)
    return plan


def _made(
    store: OpenStore, shop: Workshop, waiting: Sequence[tuple[FactLine, Plan]], options: CreateManyOptions
) -> Iterator[FactOutcome]:
    for index, found in compute_plans(shop, [plan for _, plan in waiting], store.reporter):
        one, plan = waiting[index]
        if isinstance(found, RompatchError):
            yield FactOutcome.failure(one.number, found, one.fact)
        else:
            yield _kept(store, shop.setting, one, plan, found, options)


def _kept(
    store: OpenStore,
    setting: EditSetting,
    one: FactLine,
    plan: Plan,
    computed: Computed,
    options: CreateManyOptions,
) -> FactOutcome:
    """The patch recorded, unless another process made the same one meanwhile: then that one stands."""
    spec = options.spec or store.base_spec()
    with store.ledger.transaction():
        rivals = existing.on_same_fact(store, setting.base_id, plan.request)
        header = setting.header(plan.request)
        rival = None if options.again else existing.made_so(rivals, header, setting.statistics, one.fact.true)
        if rival is not None:
            return _existed(one, rival)
        record = keep(
            store,
            computed,
            spec,
            message=one.fact.message or options.message,
            source=one.fact.source or options.source,
            expires_at=one.fact.expires or options.expires,
        )
    return FactOutcome(one.number, MADE, one.fact, plan.request.prompt, record.id)


def _same(setting: EditSetting, plan: Plan, one: FactLine) -> PatchRecord | None:
    return existing.made_so(plan.existing, setting.header(plan.request), setting.statistics, one.fact.true)


def _existed(one: FactLine, record: PatchRecord) -> FactOutcome:
    return FactOutcome(one.number, EXISTED, one.fact, record.request.prompt, record.id)


def _is_about_all(problem: RompatchError) -> bool:
    """Whether the other facts would fail as well: another base on the stack, a ledger that cannot be read."""
    if isinstance(problem, ConflictError):
        return False
    return isinstance(problem, (BaseMismatchError, StoreError))
