"""Which records of a run a living process is at work on: bytes of a file, locked one for each record.

The kernel lets a lock go when its process ends, however it ends, so a killed process blocks nobody. Processes on
different shards of one run work side by side. Where there are no such locks (Windows, some network file systems) two
processes may do the same work; the ledger counts it once all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rompatch.errors import ConflictError, StoreError
from rompatch.patch import SHORT_ID

try:
    import fcntl

    HAVE_LOCKS = True
except ImportError:  # Windows
    HAVE_LOCKS = False

LOCK_FILE = "bench.lock"
_RECORDS = 1 << 24
"""Bytes of the lock file (which stays empty) that belong to one run: more than any data set has records."""

_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def claimed(store: Path, run_id: str, places: Iterable[int] | None = None) -> Iterator[None]:
    """Records of a run are this process's own while the context lasts.

    Args:
        store: the store's folder.
        places: of the records; None: the whole run.

    Raises:
        ConflictError: another process is at work on one of them.
        StoreError: the lock file cannot be made.
    """
    runs = [range(_RECORDS)] if places is None else list(_stretches(sorted(places)))
    try:
        descriptor = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as problem:
        raise StoreError(
            f"The store {store} cannot be locked: {problem.strerror}.", next_step="Check its permissions and the disk."
        ) from problem
    try:
        for stretch in runs:
            _lock(descriptor, run_id, stretch)
        yield
    finally:
        os.close(descriptor)  # lets every lock go


def _lock(descriptor: int, run_id: str, stretch: range) -> None:
    if not HAVE_LOCKS:
        return
    start = int(run_id[:8], 16) * _RECORDS + stretch.start
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, len(stretch), start)
    except OSError as problem:
        if problem.errno in _TAKEN:
            raise ConflictError(
                f"Another process is at work on the benchmark run {run_id[:SHORT_ID]}, on records asked for here.",
                next_step="Wait for it, or share the work: --shard 1/2 for one process, --shard 2/2 for the other.",
                run_id=run_id,
            ) from problem


def _stretches(places: Iterable[int]) -> Iterator[range]:
    """Ascending places as ranges without gaps."""
    start = end = None
    for place in places:
        if end != place:
            if start is not None and end is not None:
                yield range(start, end)
            start = place
        end = place + 1
    if start is not None and end is not None:
        yield range(start, end)
