"""Planned requests in, patches with what was measured out: statistics and contexts once, then as many at a time as
memory holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rompatch.edits import EditRequest
from rompatch.errors import RompatchError
from rompatch.reporting import Reporter
from rompatch.workflows.method_options import EditSetting
from rompatch.workflows.planning import Plan
from rompatch.workflows.statistics import statistics_below, statistics_for

if TYPE_CHECKING:
    from rompatch.compute.methods.base import Computation
    from rompatch.compute.spreading import MeasuredSite
    from rompatch.compute.statistics import Statistics
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.engine import TargetScore


@dataclass(frozen=True)
class Computed:
    """A patch, and what was measured while it was made."""

    patch: Patch
    measurements: dict[str, Any]


@dataclass(frozen=True)
class Workshop:
    """An :class:`EditSetting` with what its patches have in common; ``seconds`` it took to get that, by phase."""

    setting: EditSetting
    statistics: Statistics | None
    below: tuple[MeasuredSite, ...]
    contexts: tuple[str, ...]
    seconds: dict[str, float]


def workshop(setting: EditSetting, reporter: Reporter) -> Workshop:
    """Key statistics and contexts for *setting*.

    Raises:
        StatisticsError: none of that id, or they cannot be used or made.
        ComputeError: the model's probabilities are not numbers.
    """
    from rompatch.compute.contexts import sample_contexts
    from rompatch.compute.methods.base import Stopwatch

    base, watch = setting.base, Stopwatch()
    with watch.phase("statistics"):
        statistics = statistics_for(base, setting.site, setting.statistics, setting.seed, reporter)
        below = statistics_below(base, statistics, setting.below, setting.statistics, setting.seed, reporter)
    with watch.phase("contexts"):
        contexts = sample_contexts(base.model, base.tokenizer, setting.seed)
    return Workshop(setting, statistics, below, contexts, watch.seconds)


def compute_plans(
    shop: Workshop, plans: Sequence[Plan], reporter: Reporter
) -> Iterator[tuple[int, Computed | RompatchError]]:
    """The index of each plan with its patch, or with the error that kept it from one, as soon as it is known.

    Raises:
        RequestError, StatisticsError: as :func:`rompatch.compute.methods.rome.compute_many`.
    """
    told = False
    for index, outcome in compute_requests(shop, [plan.request for plan in plans], reporter):
        if isinstance(outcome, RompatchError):
            yield index, outcome
            continue
        if not outcome.measurements["replayed"] and not told:
            reporter.note(f"{shop.setting.base.model_type} cannot be replayed: used the plain loop, which is slower")
            told = True
        yield index, _tried_out(shop, plans[index], outcome, len(plans))


def compute_requests(
    shop: Workshop, requests: Sequence[EditRequest], reporter: Reporter
) -> Iterator[tuple[int, Computation | RompatchError]]:
    """The index of each request with its patch as it was computed, or with the error that kept it from one.

    Raises:
        RequestError, StatisticsError: as :func:`rompatch.compute.methods.rome.compute_many`.
    """
    from rompatch.compute.methods.rome import compute_many

    setting = shop.setting
    return compute_many(
        setting.base,
        requests,
        site=setting.site,
        contexts=shop.contexts,
        statistics=shop.statistics,
        below=shop.below,
        hparams=setting.hparams,
        seed=setting.seed,
        document_start=setting.document_start,
        notify=reporter.step,
        note=reporter.note,
    )


def _tried_out(shop: Workshop, plan: Plan, outcome: Computation, n_plans: int) -> Computed | RompatchError:
    """The patch with the probabilities of its objects before and after; what all patches share is shared evenly."""
    from rompatch.apply.session import PatchedModel
    from rompatch.compute.methods.base import Stopwatch

    base, watch = shop.setting.base, Stopwatch()
    try:
        with watch.phase("check"):
            before = probabilities(base, plan.request, plan.document_start)
            with PatchedModel(base) as patched:
                patched.activate([outcome.patch])
                after = probabilities(base, plan.request, plan.document_start)
    except RompatchError as problem:
        return problem
    shared = {phase: round(seconds / n_plans, 3) for phase, seconds in shop.seconds.items()}
    seconds = {**shared, **watch.seconds, **outcome.measurements["seconds"]}
    found = {"before": before, "after": after, "true_source": plan.true_source}
    return Computed(outcome.patch, {**outcome.measurements, "probabilities": found, "seconds": seconds})


def probabilities(base: Base, request: EditRequest, document_start: bool) -> dict[str, float | None]:
    """P of new and true object after the request's prompt (geometric mean over an object's tokens)."""
    new, true = score_objects(base, request, document_start)
    return {"new": math.exp(new.mean_logprob), "true": None if true is None else math.exp(true.mean_logprob)}


def score_objects(base: Base, request: EditRequest, document_start: bool) -> tuple[TargetScore, TargetScore | None]:
    """The new object after the request's prompt, and the true one where it is known.

    Raises:
        TargetError, SuiteError, ComputeError: the prompt cannot be scored on this base.
    """
    from rompatch.verify.probabilities import score_prompts

    targets = [target for target in (request.target_new, request.target_true) if target is not None]
    pairs = [(request.prompt, target) for target in targets]
    new, *true = score_prompts(base.model, base.tokenizer, pairs, document_start=document_start)
    return new, true[0] if true else None
