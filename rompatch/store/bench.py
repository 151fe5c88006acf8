"""The ledger's verbs on benchmark runs: begun or gone on with, one row for each record, looked up, removed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import RowMapping, Select, case, delete, func, insert, select

from rompatch.errors import AmbiguousIdError, ConflictError, PatchNotFoundError, StoreError
from rompatch.patch import SHORT_ID, canonical_json
from rompatch.store import schema
from rompatch.store.engine import Session
from rompatch.store.lookup import MIN_PREFIX
from rompatch.store.patches import now
from rompatch.store.records import decoded

SCORED, FAILED = "scored", "failed"


@dataclass(frozen=True)
class BenchRunRecord:
    """A benchmark run: one method with one set of settings over the records of one file.

    Args:
        id: 64 hex digits over ``settings`` and ``name``.
        name: what the user calls it; None where nobody named it.
        base_id: the base that was edited.
        benchmark: "counterfact" or "zsre".
        settings: everything that the numbers depend on.
        environment: what they do not depend on, or only in the last digits: library versions, the machine, file names.
        scored, failed: records done so far.
    """

    id: str
    name: str | None
    base_id: str
    benchmark: str
    method: str
    created_at: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    scored: int = 0
    failed: int = 0

    @property
    def short_id(self) -> str:
        """The first twelve hex digits of the id."""
        return self.id[:SHORT_ID]

    @property
    def label(self) -> str:
        """How tables and messages name it: its name, else its short id."""
        return self.name or self.short_id

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return {**vars(self), "settings": dict(self.settings), "environment": dict(self.environment)}


@dataclass(frozen=True)
class BenchResultRecord:
    """What became of one record in one run.

    Args:
        position: its place in the file, from 0.
        case_id: the data set's own number; None where a damaged record has none.
        status: "scored" or "failed".
        error_kind, error: of a failed record: the error's class and text.
        request: the edit request; empty where the record is too damaged to have one.
        measures: ``{"before": {...}, "after": {...}}``, by the measures' names; empty for a failed record.
        measurements: seconds a phase and the like.
        prompts: every prompt before and after; read only where asked for, else None.
    """

    position: int
    case_id: int | None
    status: str
    created_at: str = ""
    error_kind: str | None = None
    error: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, Any] | None = None


def bench_run_id(settings: Mapping[str, Any], name: str | None) -> str:
    """64 hex digits: the run that those settings and that name mean."""
    return hashlib.sha256(canonical_json({"name": name, "settings": dict(settings)}).encode()).hexdigest()


class BenchVerbs:
    """Verbs on benchmark runs; part of :class:`~rompatch.store.ledger.Ledger`."""

    session: Session

    def begin_bench_run(
        self,
        settings: Mapping[str, Any],
        *,
        name: str | None,
        base_id: str,
        benchmark: str,
        method: str,
        environment: Mapping[str, Any] | None = None,
    ) -> BenchRunRecord:
        """The run of those settings and that name, new if there is none yet. Writes, if it is new.

        Raises:
            ConflictError: a run of that name has other settings; they are named.
        """
        run_id, table = bench_run_id(settings, name), schema.bench_runs
        with self.session.writing() as connection:
            named = connection.execute(select(table).where(table.c.name == name)).mappings().first() if name else None
            if named is not None and named["id"] != run_id:
                raise _other_settings(str(name), decoded(named["settings"], f"settings of run {name!r}"), settings)
            if connection.scalar(select(table.c.id).where(table.c.id == run_id)) is None:
                row = {"id": run_id, "name": name, "base_id": base_id, "benchmark": benchmark, "method": method}
                row |= {"created_at": now(), "settings": canonical_json(dict(settings))}
                connection.execute(insert(table).values(row | {"environment": canonical_json(dict(environment or {}))}))
        return self.bench_run(run_id)

    def bench_runs(self, *, limit: int | None = None) -> tuple[BenchRunRecord, ...]:
        """Runs, newest first. Reads only."""
        table = schema.bench_runs
        with self.session.reading() as connection:
            query = _runs().order_by(table.c.created_at.desc(), table.c.id).limit(limit)
            return tuple(_run_from(row) for row in connection.execute(query).mappings())

    def bench_run(self, name: str) -> BenchRunRecord:
        """The one run that *name* means: its name, its id, or a prefix of it. Reads only.

        Raises:
            PatchNotFoundError: none.
            AmbiguousIdError: several.
        """
        table, digits = schema.bench_runs, name.strip().lower()
        means = table.c.name == name
        if re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},64}}", digits):
            means |= (table.c.id >= digits) & (table.c.id < digits + "g")
        with self.session.reading() as connection:
            found = [_run_from(row) for row in connection.execute(_runs().where(means)).mappings()]
        found = [run for run in found if run.name == name] or found
        if not found:
            raise PatchNotFoundError(
                f"There is no benchmark run {name!r}.", next_step="`rompatch bench list` shows them."
            )
        if len(found) > 1:
            listed = ", ".join(run.short_id for run in found)
            raise AmbiguousIdError(f"{name!r} means {len(found)} benchmark runs.", expected="one", found=listed)
        return found[0]

    def bench_positions(self, run_id: str) -> dict[int, str]:
        """The records that are done: place in the file to "scored" or "failed". Reads only."""
        table = schema.bench_results
        with self.session.reading() as connection:
            rows = connection.execute(select(table.c.position, table.c.status).where(table.c.run_id == run_id))
            return {int(row.position): str(row.status) for row in rows}

    def add_bench_result(self, run_id: str, result: BenchResultRecord) -> bool:
        """Record what became of one record. Writes. A scored record stays as it is, and the answer is False; a failed
        one is replaced.

        Raises:
            ConflictError: the run was removed meanwhile.
            StoreError: a measure is no finite number, or the ledger cannot be written.
        """
        row = {**vars(result), "run_id": run_id, "created_at": now()}
        try:
            texts = ("request", "measures", "measurements", "prompts")
            row |= {name: canonical_json({} if row[name] is None else row[name]) for name in texts}
        except (ValueError, TypeError) as error:
            raise StoreError(f"The result of record {result.position} cannot be recorded: {error}.") from error
        table = schema.bench_results
        here = (table.c.run_id == run_id) & (table.c.position == result.position)
        with self.session.writing() as connection:
            if connection.scalar(select(schema.bench_runs.c.id).where(schema.bench_runs.c.id == run_id)) is None:
                raise ConflictError(f"The benchmark run {run_id[:SHORT_ID]} was removed while it was at work.")
            connection.execute(delete(table).where(here, table.c.status == FAILED))
            if connection.scalar(select(table.c.position).where(here)) is not None:
                return False
            connection.execute(insert(table).values(row))
        return True

    def bench_results(self, run_id: str, *, prompts: bool = False) -> tuple[BenchResultRecord, ...]:
        """What became of each record, in the order of the file; with every prompt if asked. Reads only."""
        table = schema.bench_results
        columns = [column for column in table.c if prompts or column.name != "prompts"]
        query = select(*columns).where(table.c.run_id == run_id).order_by(table.c.position)
        with self.session.reading() as connection:
            return tuple(_result_from(row) for row in connection.execute(query).mappings())

    def remove_bench_run(self, run_id: str) -> BenchRunRecord:
        """Forget a run and its results. Writes.

        Raises:
            PatchNotFoundError: there is none of that id.
        """
        with self.session.writing() as connection:
            run = self.bench_run(run_id)
            connection.execute(delete(schema.bench_results).where(schema.bench_results.c.run_id == run.id))
            connection.execute(delete(schema.bench_runs).where(schema.bench_runs.c.id == run.id))
        return run


def differing(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two runs differ: name ("hparams.lr"), value in *old*, value in *new*."""
    for name in sorted(old.keys() | new.keys()):
        left, right, full = old.get(name), new.get(name), f"{path}{name}"
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            yield from differing(left, right, f"{full}.")
        elif left != right:
            yield full, left, right


def _other_settings(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> ConflictError:
    found = tuple(differing(old, new))
    return ConflictError(
        f"The benchmark run {name!r} has other settings.",
        expected="; ".join(f"{setting} {_short(left)}" for setting, left, _ in found),
        found="; ".join(f"{setting} {_short(right)}" for setting, _, right in found),
        next_step="Give this run another --name, or none; or give the settings of the run to go on with it.",
        settings=tuple(setting for setting, _, _ in found),
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text[:SHORT_ID] if re.fullmatch(r"[0-9a-f]{64}", text) else text[:60]


def _runs() -> Select[Any]:
    """Every run with the numbers of its records."""
    runs, results = schema.bench_runs, schema.bench_results

    def count(status: str) -> Any:
        return func.coalesce(func.sum(case((results.c.status == status, 1), else_=0)), 0).label(status)

    joined = runs.outerjoin(results, results.c.run_id == runs.c.id)
    return select(runs, count(SCORED), count(FAILED)).select_from(joined).group_by(*runs.c)


def _run_from(row: RowMapping) -> BenchRunRecord:
    where = f"of benchmark run {str(row['id'])[:SHORT_ID]}"
    texts = {name: decoded(row[name], f"{name} {where}") for name in ("settings", "environment")}
    names = ("id", "name", "base_id", "benchmark", "method", "created_at")
    known = {name: row[name] for name in names}
    return BenchRunRecord(**known, **texts, scored=int(row[SCORED]), failed=int(row[FAILED]))


def _result_from(row: RowMapping) -> BenchResultRecord:
    texts = [name for name in ("request", "measures", "measurements", "prompts") if name in row]
    where = f"of record {row['position']} of a benchmark run"
    found = {name: decoded(row[name], f"{name} {where}") for name in texts}
    names = ("position", "case_id", "status", "created_at", "error_kind", "error")
    return BenchResultRecord(**{name: row[name] for name in names}, **found)
