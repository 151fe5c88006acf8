"""bench: every record of a file edited alone, scored before and after, forgotten; resumable, in the ledger."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import ComputeError, RompatchError
from rompatch.store.bench import FAILED, SCORED, BenchResultRecord, BenchRunRecord
from rompatch.versions import library_versions
from rompatch.workflows.bench_setting import BenchOptions, check_options, make_setting, text_files
from rompatch.workflows.opened import OpenStore

if TYPE_CHECKING:
    from rompatch.bench.running import Outcome, Setting
    from rompatch.bench.tasks import Benchmark
    from rompatch.verify.dataset import Dataset
    from rompatch.verify.reading import Problem, Record, RecordSet


@dataclass(frozen=True)
class Benched:
    """A run after a call of ``bench``.

    Args:
        run: the run as it is now, over all calls.
        asked: records that this call was about (limit, shard).
        resumed: of these, those that were done before.
        scored, failed: of these, what was done now.
    """

    run: BenchRunRecord
    asked: int
    resumed: int
    scored: int
    failed: int

    def check(self) -> None:
        """Raises ComputeError where not a single record was scored: that is no benchmark."""
        if self.run.failed and not self.run.scored:
            raise ComputeError(
                f"None of the {self.run.failed} records of run {self.run.label} could be scored.",
                next_step=f"See why: `rompatch bench worst {self.run.short_id}`.",
                run_id=self.run.id,
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {**vars(self), "run": self.run.to_json()}


def bench(store: OpenStore, benchmark: Benchmark, dataset: str | Path, options: BenchOptions | None = None) -> Benched:
    """Edit every record of *dataset* alone, score it before and after, and record the scores. Writes one committed row
    a record; the same call goes on where an earlier one was ended, however it ended.

    Args:
        benchmark: "counterfact" or "zsre".
        dataset: a file, a folder, an address or the data set's own name (:mod:`rompatch.verify.dataset`).

    Raises:
        SuiteError: the file cannot be read or holds other records; with ``strict`` also a wrong record.
        ConflictError: the name belongs to a run with other settings, or another process is at work on these records.
        ModelError, RequestError, StatisticsError: the settings do not fit the base.
        StoreError: the ledger cannot be written; what was done before stays.
    """
    from rompatch.bench.claims import claimed
    from rompatch.bench.tasks import read_benchmark, selected
    from rompatch.verify.dataset import open_dataset

    options = options or BenchOptions()
    shard = check_options(options)
    texts = text_files(options)
    file = open_dataset(str(dataset), form=benchmark, on_progress=store.reporter.note)
    records = read_benchmark(file.path, benchmark, "strict" if options.strict else "collect")
    places = selected(records.total, options.limit, shard)
    setting, preset = make_setting(store, options, texts)
    settings = _settings(setting, benchmark, file, options, texts.hashes)
    run = _begun(store, setting, settings, file, preset, options)
    known = store.ledger.bench_positions(run.id)
    done = {place for place, status in known.items() if not (options.retry and status == FAILED)}
    left = [place for place in places if place not in done]
    resumed = len(places) - len(left)
    store.reporter.note(_beginning(run, len(places), resumed))
    if left:
        with claimed(store.root, run.id, left), _kept(store, run, places):
            _work(store, run, setting, records, left, options)
    found = store.ledger.bench_positions(run.id)
    now = [found.get(place) for place in left]
    return Benched(store.ledger.bench_run(run.id), len(places), resumed, now.count(SCORED), now.count(FAILED))


def results(store: OpenStore, name: str, *, prompts: bool = False) -> tuple[BenchResultRecord, ...]:
    """What became of each record of a run. Reads only."""
    return store.ledger.bench_results(store.ledger.bench_run(name).id, prompts=prompts)


def with_results(
    store: OpenStore, names: Sequence[str] = ()
) -> list[tuple[BenchRunRecord, tuple[BenchResultRecord, ...]]]:
    """The runs of those names, or all of them in the order they were begun, each with its results. Reads only."""
    found = [store.ledger.bench_run(name) for name in names] if names else store.ledger.bench_runs()[::-1]
    once = {run.id: run for run in found}
    return [(run, store.ledger.bench_results(run.id)) for run in once.values()]


def remove(store: OpenStore, name: str) -> BenchRunRecord:
    """Forget a run and its results. Writes.

    Raises:
        ConflictError: a process is at work on it.
    """
    from rompatch.bench.claims import claimed

    run = store.ledger.bench_run(name)
    with claimed(store.root, run.id):
        return store.ledger.remove_bench_run(run.id)


def _settings(
    setting: Setting, benchmark: Benchmark, file: Dataset, options: BenchOptions, hashes: Mapping[str, str | None]
) -> dict[str, Any]:
    from rompatch.bench.identity import settings_of

    more: dict[str, Any] = {**hashes, "generation": options.generation}
    if benchmark == "zsre":
        more["teach"] = options.teach
    return settings_of(setting, benchmark=benchmark, method=options.method, dataset=file.sha256, more=more)


def _begun(
    store: OpenStore,
    setting: Setting,
    settings: dict[str, Any],
    file: Dataset,
    preset: str,
    options: BenchOptions,
) -> BenchRunRecord:
    """The run of these settings, new or gone on with."""
    base, statistics = setting.base, setting.statistics
    environment = {
        "base": base.source,
        "dtype": base.dtype,
        "device": options.device,
        "dataset": file.url or str(file.path.absolute()),
        "preset": preset,
        "statistics": None if statistics is None else f"{statistics.tokens:,} tokens of {statistics.key.corpus}",
        "contexts": list(setting.contexts),
        "versions": {**library_versions(), "python": platform.python_version()},
        "machine": platform.machine(),
    }
    with store.ledger.transaction():
        return store.ledger.begin_bench_run(
            settings,
            name=options.name,
            base_id=store.ledger.add_base(base.ref()).id,
            benchmark=settings["benchmark"],
            method=options.method,
            environment=environment,
        )


def _beginning(run: BenchRunRecord, asked: int, resumed: int) -> str:
    records = f"{asked:,} record{'' if asked == 1 else 's'}"
    if not run.scored + run.failed:
        return f"run {run.label}: {records}"
    if resumed == asked:
        return f"run {run.label}: {records}, all of them done before"
    return f"run {run.label}: going on after {resumed:,} of {records}"


@contextmanager
def _kept(store: OpenStore, run: BenchRunRecord, places: Sequence[int]) -> Iterator[None]:
    """Whatever ends the work early: say what is done, and how to go on."""
    try:
        yield
    except BaseException:
        with suppress(RompatchError):  # the ledger itself may be what failed
            done = store.ledger.bench_positions(run.id).keys() & set(places)
            store.reporter.note(
                f"run {run.label}: {len(done)} of {len(places)} records are done and kept; "
                "the same command goes on from there"
            )
        raise


def _work(
    store: OpenStore,
    run: BenchRunRecord,
    setting: Setting,
    records: RecordSet[Record],
    left: Sequence[int],
    options: BenchOptions,
) -> None:
    """Compute, score and record the records at the places *left*."""
    from rompatch.bench.running import Hearers, run_tasks
    from rompatch.bench.tasks import positions, tasks_of

    reporter = store.reporter
    wanted, done, failed = set(left), 0, 0

    def keep(result: BenchResultRecord) -> None:
        nonlocal done, failed
        store.ledger.add_bench_result(run.id, result)
        done, failed = done + 1, failed + (result.status == FAILED)
        reporter.overall("records" + (f" ({failed} failed)" if failed else ""), done, len(left))

    reporter.overall("records", 0, len(left))
    for problem in records.problems:
        if problem.position in wanted:
            keep(_damaged(problem))
    tasks = tasks_of(positions(records), left, options.teach)
    for outcome in run_tasks(setting, tasks, Hearers(reporter.step, reporter.note)):
        if options.strict and outcome.error is not None:
            raise outcome.error
        keep(_result(outcome))


def _damaged(problem: Problem) -> BenchResultRecord:
    return BenchResultRecord(problem.position, problem.record_id, FAILED, "", *_error(problem.error))


def _result(outcome: Outcome) -> BenchResultRecord:
    task, problem = outcome.task, outcome.error
    kind, text = (None, None) if problem is None else _error(problem)
    return BenchResultRecord(
        position=task.position,
        case_id=task.record.case_id,
        status=SCORED if problem is None else FAILED,
        error_kind=kind,
        error=text,
        request=task.request.to_json(),
        measures=outcome.measures,
        measurements=outcome.measurements,
        prompts=outcome.prompts,
    )


def _error(problem: RompatchError) -> tuple[str, str]:
    return type(problem).__name__, str(problem)
