"""tune: layers and hyper-parameters tried on records of a file, the better half on more of them; a preset comes out.

A candidate is a benchmark run in the ledger, and a rung is more records of it, so nothing is computed twice and nothing
is lost, however the work is ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.bench.tuning import Candidate, Rung, candidates, ranked, rungs, survivors, work
from rompatch.errors import ComputeError, RequestError, StatisticsError, SuiteError
from rompatch.reporting import Reporter
from rompatch.store.bench import SCORED, BenchResultRecord
from rompatch.verify.intervals import mean_estimate, summarise
from rompatch.workflows.bench_setting import BenchOptions
from rompatch.workflows.benchmarking import bench
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.statistics import AUTOMATIC, NO_STATISTICS
from rompatch.workflows.tuned import MEASURES, Standing, Tuned, TuneOptions
from rompatch.workflows.tuned_preset import check_out, preset_of, write_preset
from rompatch.workflows.tuning_statistics import statistics_at

if TYPE_CHECKING:
    from rompatch.models import Base
    from rompatch.verify.dataset import Dataset


def tune(store: OpenStore, dataset: str | Path, options: TuneOptions) -> Tuned:
    """Find the best of some layers and hyper-parameters on COUNTERFACT records, by successive halving. Writes one
    committed row a record and candidate; the same call goes on where an earlier one was ended, however it ended.

    Args:
        dataset: a file, a folder, an address or the data set's own name (:mod:`rompatch.verify.dataset`).

    Raises:
        RequestError: the options contradict each other, a list is empty, or a value is no hyper-parameter's.
        SuiteError: the file cannot be read, or has fewer good records than the first rung.
        ModelError, SiteError: the base cannot be loaded, or has no such layer.
        StatisticsError: a layer has no key statistics, and nobody asked for any to be built.
        OutputError: the preset exists, or cannot be written.
        ComputeError: no candidate could be scored on a single record.
        StoreError: the ledger cannot be written; what was done before stays.
    """
    check_options(options)
    file, available = _records(store, str(dataset), options)
    base = store.base(options.spec or store.base_spec(), device=options.device)
    layers: list[int] = []
    for layer in options.layers:  # looked at one by one: a range may go far beyond the last layer
        base.site(layer)
        layers.append(layer)
    found = candidates(layers, options.grid)
    shared = {layer - number for layer in layers for number in range(max(options.grid.get("spread", (1,))))}
    statistics = statistics_at(base, sorted(layer for layer in shared if layer >= 0), options, store.reporter)
    tuning = _Tuning(store, file, options, statistics, available)
    with tuning.kept():
        went, standings = tuning.run(found)
    preset = _preset(base, file, options, standings, store)
    if options.out is not None:
        check_out(options.out, options.force)
        write_preset(options.out, preset)
    return Tuned(file.path.name, file.sha256, went, standings, preset, options.out)


def check_options(options: TuneOptions) -> None:
    """What can be refused before anything is read.

    Raises:
        RequestError, OutputError: see :func:`tune`.
    """
    from rompatch.compute.corpus import open_corpus
    from rompatch.compute.methods.rome_hparams import RomeHparams

    if options.rung < 1:
        raise RequestError("The first rung must have at least 1 record.", found=options.rung)
    if options.limit is not None and options.limit < options.rung:
        raise RequestError(
            f"The limit leaves fewer records than the first rung has, {options.rung}.",
            found=options.limit,
            next_step="Raise --limit, or lower --rung.",
        )
    if options.corpus is not None and options.statistics is not None:
        raise RequestError("Key statistics come from --corpus or from --statistics, not from both.")
    if options.statistics not in (None, AUTOMATIC, NO_STATISTICS):
        raise RequestError(
            f"{options.statistics!r} names no key statistics for several layers.",
            expected=f"{AUTOMATIC} or {NO_STATISTICS}",
        )
    if "precision" in options.grid:
        raise RequestError("The precision is the machine's, not a candidate's.", next_step="Give it as an option.")
    wrong = [one for tried in options.grid.values() for one in tried if isinstance(one, float) and not isfinite(one)]
    if wrong:
        raise RequestError("A hyper-parameter is no finite number.", found=wrong[0])
    for one in candidates((0,), options.grid):
        try:
            RomeHparams(**one.hparams)
        except TypeError as problem:
            raise RequestError("There is no such hyper-parameter.", found=sorted(options.grid)) from problem
    if options.corpus is not None:
        open_corpus(options.corpus)
    if options.out is not None:
        check_out(options.out, options.force)


def _records(store: OpenStore, spec: str, options: TuneOptions) -> tuple[Dataset, int]:
    """The file, and how many of its records there are to tune on."""
    from rompatch.bench.tasks import read_benchmark
    from rompatch.verify.dataset import open_dataset

    file = open_dataset(spec, form="counterfact", on_progress=store.reporter.note)
    records = read_benchmark(file.path, "counterfact", "collect")
    if len(records.records) < options.rung:
        raise SuiteError(
            f"The file {str(file.path)!r} has too few records to tune on.",
            expected=f"at least {options.rung} that are whole, for the first rung",
            found=f"{len(records.records)} of {records.total}",
            next_step="Name a larger file, or lower --rung.",
        )
    return file, records.total if options.limit is None else min(options.limit, records.total)


class _Relay(Reporter):
    """A benchmark's progress as a part of the tuning's: one bar, and no notes about single runs."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter, self.phase, self.before, self.total = reporter, "", 0, 0

    def note(self, text: str) -> None:
        """Pass on what is not about a run: candidates are told of by rungs."""
        if not text.startswith("run "):
            self.reporter.note(text)

    def step(self, phase: str, done: int, total: int) -> None:
        """Pass on."""
        self.reporter.step(phase, done, total)

    def overall(self, phase: str, done: int, total: int) -> None:
        """*before* counts all records up to those of this call, *total* of which were not done yet."""
        self.reporter.overall(phase.replace("records", self.phase), self.before - total + done, self.total)


@dataclass
class _Tuning:
    store: OpenStore
    file: Dataset
    options: TuneOptions
    statistics: Mapping[int, str]
    available: int
    done: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        self.relay = _Relay(self.store.reporter)
        self.benched = replace(self.store, reporter=self.relay)

    def run(self, living: Sequence[Candidate]) -> tuple[tuple[Rung, ...], tuple[Standing, ...]]:
        """Rungs and standings, best first."""
        went: list[Rung] = []
        out: list[Standing] = []
        plan = rungs(len(living), self.options.rung, self.available)
        records = 0
        while True:
            self.total = self.done + work(plan, records)
            new, records = plan[0].records - records, plan[0].records
            standings = {place: self._scored(one, records, new) for place, one in enumerate(living)}
            scores = {place: one.score for place, one in standings.items() if one.dropped is None}
            order = ranked(scores)
            if not order:
                raise _nobody([*standings.values(), *out])
            kept = survivors(len(order), last=records >= self.available)
            went.append(Rung(records, len(living), kept))
            out[:0] = [standings[place] for place in (*order, *(standings.keys() - scores.keys()))][kept:]
            best, living = order[:kept], [living[place] for place in order[:kept]]
            self._tell(went, living)
            if kept == 1:
                ordered = [standings[best[0]], *out]
                return tuple(went), tuple(sorted(ordered, key=lambda one: one.dropped is not None))
            plan = rungs(kept, self.options.rung, self.available, records)

    def _scored(self, candidate: Candidate, records: int, new: int) -> Standing:
        """A candidate after the first *records* of the file, *new* of them added in this rung."""
        self.done += new
        self.relay.phase, self.relay.before, self.relay.total = candidate.label, self.done, self.total
        try:
            run = bench(self.benched, "counterfact", self.file.path, self._options(candidate, records)).run
        except (ComputeError, RequestError, StatisticsError) as problem:
            return Standing(candidate, records, dropped=str(problem))
        results = [one for one in self.store.ledger.bench_results(run.id) if one.position < records]
        return _standing(candidate, records, run.id, results)

    def _options(self, candidate: Candidate, records: int) -> BenchOptions:
        options = self.options
        return BenchOptions(
            limit=records,
            spec=options.spec,
            device=options.device,
            layer=candidate.layer,
            seed=options.seed,
            document_start=options.document_start,
            hparams=candidate.hparams,
            statistics=self.statistics[candidate.layer],
            precision=options.precision,
            preset=options.preset,
        )

    def _tell(self, went: Sequence[Rung], living: Sequence[Candidate]) -> None:
        rung = went[-1]
        labels = "; ".join(candidate.label for candidate in living)
        self.store.reporter.note(
            f"rung {len(went)}: {rung.candidates} candidate{'' if rung.candidates == 1 else 's'} "
            f"on {rung.records} record{'' if rung.records == 1 else 's'}, "
            + (f"the best is {labels}" if rung.kept == 1 else f"going on with {labels}")
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever ends the work early: say how to go on."""
        try:
            yield
        except BaseException:
            self.store.reporter.note("every record that is done is kept; the same command goes on from there")
            raise


def _standing(candidate: Candidate, records: int, run: str, results: Sequence[BenchResultRecord]) -> Standing:
    scored = [one for one in results if one.status == SCORED]
    failed = len(results) - len(scored)
    # What an edit fails of tells more than what is wrong with a damaged record, which has no request.
    errors = [one.error for one in sorted(results, key=lambda one: not one.request)]
    estimates = summarise([one.measures["after"] for one in scored], MEASURES)
    seconds = mean_estimate([_seconds(one) for one in scored])
    return Standing(
        candidate,
        records,
        run,
        scored=len(scored),
        failed=failed,
        estimates=estimates,
        seconds=None if seconds is None else round(seconds.value, 3),
        dropped=None if scored else errors[0],
    )


def _seconds(result: BenchResultRecord) -> float:
    """To compute the edit, without scoring it."""
    return float(sum(spent for phase, spent in result.measurements["seconds"].items() if phase != "scoring"))


def _nobody(standings: Sequence[Standing]) -> ComputeError:
    reasons = dict.fromkeys(f"{one.candidate.label}: {one.dropped}" for one in standings if one.dropped)
    return ComputeError(
        "No candidate could be scored on a single record.",
        found="; ".join(list(reasons)[:3]),
        next_step="Fix what is wrong with the records or the settings, then give the command again.",
    )


def _preset(
    base: Base, file: Dataset, options: TuneOptions, standings: Sequence[Standing], store: OpenStore
) -> dict[str, Any]:
    assert standings[0].run is not None  # the best was scored
    run = store.ledger.bench_run(standings[0].run)
    return preset_of(base, run, file.path.name, [one.to_json() for one in standings if one.dropped is None])
