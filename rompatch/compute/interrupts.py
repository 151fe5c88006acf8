"""Ctrl-C waits while a sum is half added."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C pressed inside the block is heard at its end. For blocks that take moments.

    Outside the main thread, where Python delivers no signal, and where nobody in Python listens for it, nothing
    changes.
    """
    listens = callable(signal.getsignal(signal.SIGINT))
    if not listens or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)
