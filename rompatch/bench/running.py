"""Tasks in, outcomes out: each record's patch is computed, scored before and after, and forgotten.

Patches are optimised together as far as memory reaches, scored in groups, and never in the model's weights but where
the model has to write. A record that fails takes no other with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rompatch.apply.solve import solve_stack
from rompatch.bench.tasks import Task
from rompatch.bench.texts import TextMeasurer, Written
from rompatch.compute.methods.base import Computation, Notify, silent
from rompatch.compute.methods.rome import compute_many
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.spreading import MeasuredSite
from rompatch.compute.statistics import Statistics
from rompatch.errors import RompatchError
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.sites import Site
from rompatch.tokens import context_length
from rompatch.verify.checking import check_record
from rompatch.verify.evaluation import Evaluation, PromptResult, evaluate_batch
from rompatch.verify.exact import exact_success
from rompatch.verify.updates import SiteTerm

GROUP = 16
"""Records scored at once: enough to fill a forward pass, few enough for their hidden states to fit into memory."""


@dataclass(frozen=True)
class Setting:
    """What all records of a run share; *below*: the sites that a value is spread to beside *site*. *texts* is
    None where nothing is measured on texts."""

    base: Base
    site: Site
    below: tuple[MeasuredSite, ...]
    contexts: tuple[str, ...]
    statistics: Statistics | None
    hparams: RomeHparams
    seed: int
    document_start: bool
    texts: TextMeasurer | None = None


@dataclass(frozen=True)
class Hearers:
    """Who is told what: *notify* the progress of a batch, *note* what a person should know."""

    notify: Notify = silent
    note: Callable[[str], None] = lambda _text: None


SILENT = Hearers()


@dataclass(frozen=True)
class Outcome:
    """What became of a task: *error*, or the measures by phase ("before", "after") and every prompt."""

    task: Task
    error: RompatchError | None = None
    measures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Any] = field(default_factory=dict)


def run_tasks(setting: Setting, tasks: Sequence[Task], hearers: Hearers = SILENT) -> Iterator[Outcome]:
    """An outcome for each task, as soon as it is known, in the order in which they are done.

    Raises:
        StatisticsError: C cannot be used, whatever the record.
    """
    fit: list[Task] = []
    for task in tasks:
        try:
            check_record(
                task.record,
                setting.base.tokenizer,
                context_length(setting.base.model),
                document_start=setting.document_start,
            )
            fit.append(task)
        except RompatchError as problem:
            yield Outcome(task, problem)
    group: list[tuple[Task, Computation]] = []
    for task, outcome in _computed(setting, fit, hearers):
        if isinstance(outcome, RompatchError):
            yield Outcome(task, outcome)
            continue
        group.append((task, outcome))
        if len(group) == GROUP:
            yield from _scored(setting, group, hearers)
            group = []
    yield from _scored(setting, group, hearers)


def _computed(
    setting: Setting, tasks: Sequence[Task], hearers: Hearers
) -> Iterator[tuple[Task, Computation | RompatchError]]:
    """Patches for *tasks*, in the order in which their batches are done."""
    for index, outcome in compute_many(
        setting.base,
        [task.request for task in tasks],
        site=setting.site,
        contexts=setting.contexts,
        statistics=setting.statistics,
        below=setting.below,
        hparams=setting.hparams,
        seed=setting.seed,
        document_start=setting.document_start,
        notify=hearers.notify,
        note=hearers.note,
    ):
        yield tasks[index], outcome


def _scored(setting: Setting, group: Sequence[tuple[Task, Computation]], hearers: Hearers) -> Iterator[Outcome]:
    if not group:
        return
    start = time.perf_counter()
    try:
        evaluated = evaluate_batch(
            setting.base.model,
            setting.base.tokenizer,
            [task.suite for task, _ in group],
            [_terms(setting, computation.patch) for _, computation in group],
            document_start=setting.document_start,
            on_progress=lambda done, total: hearers.notify("scoring", done, total),
        )
    except RompatchError as problem:
        if len(group) == 1:
            yield Outcome(group[0][0], problem)
            return
        for one in group:  # one bad record fails them all: find it
            yield from _scored(setting, [one], hearers)
        return
    seconds = (time.perf_counter() - start) / len(group)
    for (task, computation), (before, after) in zip(group, evaluated, strict=True):
        yield _outcome(setting, task, computation, before, after, seconds)


def _terms(setting: Setting, patch: Patch) -> list[SiteTerm]:
    sites = {site.parameter_name: site for site in (setting.site, *(one.site for one in setting.below))}
    return [SiteTerm.of(sites[name], update.left, update.right) for name, update in solve_stack([patch]).items()]


def _outcome(
    setting: Setting, task: Task, computation: Computation, before: Evaluation, after: Evaluation, seconds: float
) -> Outcome:
    try:
        written = None if setting.texts is None else setting.texts.measure(task.record, computation.patch)
    except RompatchError as problem:
        return Outcome(task, problem)
    measures = _measures(before, after, written)
    prompts: dict[str, Any] = {
        "prompts": [_prompt(old, new) for old, new in zip(before.results, after.results, strict=True)]
    }
    if written is not None and written.texts_after:
        prompts["texts"] = {"before": written.texts_before, "after": written.texts_after}
    return Outcome(task, None, measures, _measurements(computation, seconds), prompts)


def _measures(before: Evaluation, after: Evaluation, written: Written | None) -> dict[str, dict[str, Any]]:
    # The base compared with itself keeps every token: that says nothing, so its locality counts as not measured.
    own = exact_success(before.results, before.results).to_json()
    own |= {"locality": None, "locality_exact": None, "n_locality": 0}
    found = {
        "before": {**before.scores.to_json(), **own},
        "after": {**after.scores.to_json(), **exact_success(before.results, after.results).to_json()},
    }
    if written is not None:
        found["before"] |= written.before
        found["after"] |= written.after
    return found


def _prompt(old: PromptResult, new: PromptResult) -> dict[str, Any]:
    return {**new.prompt.to_json(), "before": _result(old), "after": _result(new)}


def _result(result: PromptResult) -> dict[str, Any]:
    return {
        "new_logprob": result.new_logprob,
        "true_logprob": result.true_logprob,
        "new_exact": result.new_exact,
        "true_exact": result.true_exact,
        "margin": result.margin,
        "passed": result.passed,
    }


def _measurements(computation: Computation, seconds: float) -> dict[str, Any]:
    measured = computation.measurements
    losses = measured["losses"]
    return {
        "patch_id": computation.patch.id,
        "steps": len(losses),
        "loss": losses[-1]["total"] if losses else None,
        "norms": measured["norms"],
        "seconds": {**measured["seconds"], "scoring": round(seconds, 3)},
    }
