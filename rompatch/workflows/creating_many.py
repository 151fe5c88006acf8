"""create --file: many facts in, a recorded patch for each out. What is there is skipped, what fails is named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rompatch.edits import same_text
from rompatch.errors import ConflictError, OutputError, RequestError
from rompatch.facts.fact import Fact
from rompatch.facts.reading import FactLine, FactList, read_facts
from rompatch.workflows import stacking
from rompatch.workflows.failed_lines import write_failed
from rompatch.workflows.jobs import in_processes
from rompatch.workflows.many_outcomes import FAILED, MADE, REPEATED, FactOutcome, ManyCreated
from rompatch.workflows.many_running import CreateManyOptions, make_patches
from rompatch.workflows.method_options import check_method, edit_setting
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.provenance import checked_expiry


def create_many(
    store: OpenStore,
    source: str | Path | Iterable[Mapping[str, Any]],
    options: CreateManyOptions | None = None,
) -> ManyCreated:
    """A patch for every fact in *source*. Writes: each patch is committed as it comes, so whatever ends the work loses
    nothing that was done, and the same call goes on from there.

    Args:
        source: a file (:mod:`rompatch.facts.lines`), "-" for standard input, or objects with the fields of one.

    Raises:
        RequestError: the file as a whole cannot be read; wrong lines are outcomes, not errors.
        OutputError: ``out`` exists already.
        ModelError, StatisticsError: base or statistics cannot be used.
        BaseMismatchError: with ``apply``, the stack in force is on another base; nothing is computed.
        ConflictError: with ``apply``, the stack does not take the patches; they are made all the same.
        StoreError, OutputError: nothing more can be written.
    """
    options = options or CreateManyOptions()
    _check(options)
    listed = read_facts(source)
    todo, outcomes = sorted_out(listed, apply=options.apply)
    setting: Mapping[str, Any] | None = None
    with _accounted(store, outcomes, listed.total):
        if todo:
            setting, stream = _stream(store, todo, options)
            for outcome in stream:
                outcomes.append(outcome)
                _tell(store, outcomes, listed.total)
    done = ManyCreated(listed.source, setting, tuple(sorted(outcomes, key=lambda one: one.number)))
    if options.dry_run:
        return done
    if options.out is not None and done.failures:
        done = replace(done, out=write_failed(options.out, listed, done.failures))
    return _applied(store, done, options)


def sorted_out(listed: FactList, *, apply: bool) -> tuple[list[FactLine], list[FactOutcome]]:
    """The facts to be worked on, and what became of the other lines: wrong, repeated, or (where all are to be applied
    together) in contradiction to an earlier one."""
    outcomes = [FactOutcome.failure(bad.number, bad.error) for bad in listed.bad]
    todo: list[FactLine] = []
    seen: dict[tuple[str, ...], int] = {}
    objects: dict[tuple[str, ...], FactLine] = {}
    for one in listed.facts:
        question = _key(one.fact.subject, one.fact.wording)
        whole = (*question, *_key(one.fact.target, one.fact.true or ""))
        if problem := _wrong_day(one.fact):
            outcomes.append(FactOutcome.failure(one.number, problem, one.fact))
            continue
        first = objects.setdefault(question, one)
        if whole in seen:
            outcomes.append(FactOutcome(one.number, REPEATED, one.fact, repeats=seen[whole]))
        elif apply and not same_text(first.fact.target, one.fact.target):
            outcomes.append(FactOutcome.failure(one.number, _contradiction(one.fact, first), one.fact))
        else:
            seen[whole] = one.number
            todo.append(one)
    return todo, outcomes


def _wrong_day(fact: Fact) -> RequestError | None:
    try:
        checked_expiry(fact.expires)
    except RequestError as problem:
        problem.facts["field"] = "expires"
        return problem
    return None


def _key(*texts: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()).casefold() for text in texts)


def _contradiction(fact: Fact, first: FactLine) -> ConflictError:
    return ConflictError(
        f"{fact.label} contradicts line {first.number} ({first.fact.label}): same subject and relation, "
        "another object.",
        next_step="Only one of them can be on a stack: leave one out, or leave out --apply.",
        field="object",
    )


def _stream(
    store: OpenStore, todo: Sequence[FactLine], options: CreateManyOptions
) -> tuple[Mapping[str, Any], Iterator[FactOutcome]]:
    """What all patches share, and the outcomes as they come."""
    jobs = min(options.jobs, len(todo))
    if jobs > 1 and not options.dry_run:
        return in_processes(store, todo, options, jobs)
    setting = edit_setting(store, options)
    return setting.to_json(), make_patches(store, setting, todo, options)


def _tell(store: OpenStore, outcomes: Sequence[FactOutcome], total: int) -> None:
    failed = sum(one.status == FAILED for one in outcomes)
    store.reporter.overall("facts" + (f" ({failed} failed)" if failed else ""), len(outcomes), total)


@contextmanager
def _accounted(store: OpenStore, outcomes: Sequence[FactOutcome], total: int) -> Iterator[None]:
    """Whatever ends the work early: say what is done, and how to go on."""
    try:
        yield
    except BaseException:
        made = sum(one.status == MADE for one in outcomes)
        if made:
            store.reporter.note(
                f"{made} of {total} patches were made and are kept; the same command goes on from there"
            )
        raise


def _applied(store: OpenStore, done: ManyCreated, options: CreateManyOptions) -> ManyCreated:
    active = {record.id for record in store.active()}
    new = [patch_id for patch_id in done.patch_ids if patch_id not in active]
    if not options.apply or not new:
        return done
    return replace(done, revision=stacking.apply(store, new, message=options.message, reason=options.reason))


def _check(options: CreateManyOptions) -> None:
    """What can be refused before anything is read."""
    check_method(options)
    checked_expiry(options.expires)
    if options.jobs < 1:
        raise RequestError("The number of jobs must be at least 1.", found=options.jobs)
    if options.out is not None and os.path.lexists(options.out):
        raise OutputError(
            f"The file for failed lines exists already: {options.out}.",
            next_step="Choose another name; nothing was read or computed.",
        )
