"""Facts shared out among processes: each loads the base and takes its part; all write to one ledger.

The parts are fixed before the work begins (every n-th fact). A process reports each outcome when it is in the ledger,
so nothing that was reported can be lost. Processes end with the one that began them: at once when it ends in order, at
their next report when it was killed.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rompatch.errors import ComputeError
from rompatch.facts.reading import FactLine
from rompatch.reporting import Reporter
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path, patches_path
from rompatch.workflows.many_outcomes import FactOutcome
from rompatch.workflows.many_running import CreateManyOptions, make_patches
from rompatch.workflows.method_options import edit_setting
from rompatch.workflows.opened import OpenStore

_PATIENCE = 30.0
"""Seconds that a process has to end in order when it is told to."""


@dataclass(frozen=True)
class Part:
    """What one process is told."""

    store: Path
    facts: tuple[FactLine, ...]
    options: CreateManyOptions
    threads: int
    max_memory: str | Mapping[str | int, str | int] | None
    offload_folder: Path | None


@dataclass(frozen=True)
class _Begun:
    """A process loaded its base; what its patches share."""

    setting: Mapping[str, Any]


@dataclass(frozen=True)
class _Note:
    text: str


def in_processes(
    store: OpenStore, facts: Sequence[FactLine], options: CreateManyOptions, jobs: int
) -> tuple[Mapping[str, Any], Iterator[FactOutcome]]:
    """As :func:`rompatch.workflows.many_running.make_patches`, in *jobs* processes; and what all patches share.

    The cores are divided among the processes.

    Raises:
        RompatchError: what ended a process; the others are ended too.
        ComputeError: a process died.
    """
    import torch

    spec = options.spec or store.base_spec()
    threads = max(1, torch.get_num_threads() // jobs)
    told = replace(options, spec=spec, jobs=1, out=None)
    parts = [
        Part(store.root, tuple(facts[first::jobs]), told, threads, store.max_memory, store.offload_folder)
        for first in range(jobs)
    ]
    heard = _heard(parts, store.reporter)
    begun = next(heard)
    assert isinstance(begun, _Begun)  # _heard says so first
    return begun.setting, _outcomes(heard)


def _outcomes(heard: Iterator[_Begun | FactOutcome]) -> Iterator[FactOutcome]:
    for one in heard:
        if isinstance(one, FactOutcome):
            yield one


def _heard(parts: Sequence[Part], reporter: Reporter) -> Iterator[_Begun | FactOutcome]:
    """What the processes report, one beginning first."""
    running: dict[Connection, BaseProcess] = {}
    early: list[FactOutcome] | None = []
    try:
        for number, part in enumerate(parts):
            running |= _started(part, first=number == 0)
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                message = _received(ready, running)
                if isinstance(message, _Note):
                    reporter.note(message.text)
                elif isinstance(message, BaseException):
                    raise message
                elif isinstance(message, _Begun) and early is not None:
                    yield message
                    yield from early
                    early = None
                elif isinstance(message, FactOutcome):
                    if early is None:
                        yield message
                    else:
                        early.append(message)
    finally:
        _end(running.values())


def _started(part: Part, *, first: bool) -> dict[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, part, first), daemon=True)
    process.start()
    there.close()  # so that its end is heard when it dies
    return {here: process}


def _received(ready: Connection, running: dict[Connection, BaseProcess]) -> object:
    """The next message; None at the end of a process that ended well."""
    try:
        return ready.recv()
    except EOFError:
        process = running.pop(ready)
        process.join()  # it is on its way out, however busy the machine is
        if process.exitcode != 0:
            return ComputeError(
                "A process that computed patches died.",
                found=f"exit code {process.exitcode}",
                next_step="Memory may have run out: try fewer --jobs. The same command goes on from what is done.",
            )
        return None


def _end(processes: Sequence[BaseProcess] | Any) -> None:
    left = [process for process in processes if process.is_alive()]
    for process in left:
        process.terminate()
    for process in left:
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()


class _Telling(Reporter):
    """Notes go to the process that began this one; those of the first process alone, since all say the same."""

    def __init__(self, connection: Connection, *, first: bool) -> None:
        self._connection, self._first = connection, first

    def note(self, text: str) -> None:
        if self._first:
            self._connection.send(_Note(text))


def _work(connection: Connection, part: Part, first: bool) -> None:
    """The body of a process."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the first process ends this one
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    torch.set_num_threads(part.threads)
    try:
        ledger, blobs = Ledger.open(ledger_path(part.store)), Blobs(patches_path(part.store))
        teller = _Telling(connection, first=first)
        with OpenStore(part.store, ledger, blobs, teller, part.max_memory, part.offload_folder) as store:
            setting = edit_setting(store, part.options)
            connection.send(_Begun(setting.to_json()))
            for outcome in make_patches(store, setting, part.facts, part.options):
                connection.send(outcome)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        return  # the process that began this one is gone
    except Exception as problem:  # noqa: BLE001 - the other side raises it
        connection.send(problem)
