"""Read ahead: a thread prepares the next items while the caller works on this one."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")

AHEAD = 4
"""Items that wait at most: enough to ride out a slow document, few enough to cost no memory."""
_PATIENCE = 2.0
"""Seconds in which the thread may finish what it is reading; after that it is left to end by itself."""


def prefetched(items: Iterable[T], ahead: int = AHEAD) -> Generator[T, None, None]:
    """The same items in the same order, at most *ahead* of them read before they are asked for.

    What *items* raises is raised here, behind the items that came before it. The thread starts with the first item
    asked for, and ends with the generator, however that ends: exhausted, closed, or by an exception.
    """
    queue: Queue[tuple[T] | BaseException | None] = Queue(maxsize=ahead)
    stopped = threading.Event()
    reader = threading.Thread(target=_read, args=(items, queue, stopped), name="rompatch-reader", daemon=True)
    reader.start()
    try:
        while (entry := queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        stopped.set()
        _end(reader, queue)


def _read(items: Iterable[T], queue: Queue[tuple[T] | BaseException | None], stopped: threading.Event) -> None:
    last: BaseException | None = None
    try:
        for item in items:
            queue.put((item,))
            if stopped.is_set():
                return
    except BaseException as problem:  # noqa: BLE001 - it is raised where the items are used
        last = problem
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
    queue.put(last)


def _end(reader: threading.Thread, queue: Queue[tuple[T] | BaseException | None]) -> None:
    """Empty *queue* until *reader* is out: it may be waiting for room."""
    for _ in range(int(_PATIENCE / 0.02)):
        while True:
            try:
                queue.get_nowait()
            except Empty:
                break
        reader.join(0.02)
        if not reader.is_alive():
            return
