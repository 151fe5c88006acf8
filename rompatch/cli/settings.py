"""What the global options said, and the store and reporter that follow from them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rompatch.cli.terminal import TerminalReporter

if TYPE_CHECKING:
    from rompatch.workflows.store import Store


class HeldInterrupts:
    """Ctrl-C waits from here to :meth:`release`: a store that is half made could not be taken away again."""

    def __init__(self) -> None:
        self._pressed: list[tuple[int, FrameType | None]] = []
        self._before: Any = None
        if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGINT)):
            self._before = signal.signal(signal.SIGINT, lambda *pressed: self._pressed.append(pressed))

    def restore(self) -> None:
        """Listen again, as before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def release(self) -> None:
        """Listen again; what was pressed meanwhile is heard now (``KeyboardInterrupt``)."""
        self.restore()
        if self._pressed:
            self._before(*self._pressed[0])


@dataclass
class Settings:
    """One run's global options.

    Args:
        store: ``--store``.
        quiet: ``--quiet``: no notes and no progress.
        color: ``--color`` or ``--no-color``; None follows ``NO_COLOR`` and the terminal.
        max_memory, offload_folder: of the command that loads a model.
    """

    store: Path | None = None
    quiet: bool = False
    color: bool | None = None
    max_memory: str | None = None
    offload_folder: Path | None = None
    _reporters: list[TerminalReporter] = field(default_factory=list)

    def reporter(self) -> TerminalReporter:
        """Who tells the user about notes and progress, on stderr; the same one throughout."""
        if not self._reporters:
            self._reporters.append(TerminalReporter(quiet=self.quiet, color=self.color))
        return self._reporters[0]

    def close(self) -> None:
        """Take a progress bar off the screen."""
        for reporter in self._reporters:
            reporter.stop()

    @contextmanager
    def open_store(self, *, create: bool = False, scratch: bool = False) -> Iterator[Store]:
        """The store that ``--store``, the environment or the working directory means, closed afterwards.

        Args:
            create: make it where there is none; a store that was made here and is still empty when something goes
                wrong is taken away again.
            scratch: where there is none, an empty one in memory.

        Raises:
            StoreError: there is none, or it cannot be opened.
        """
        from rompatch.workflows.fresh import discarded_unless_used, scratch_store, store_exists
        from rompatch.workflows.store import open_store

        reporter = self.reporter()
        exists = store_exists(self.store)
        held = HeldInterrupts()
        try:
            if not exists and scratch:
                opened = scratch_store(reporter)
            else:
                opened = open_store(self.store, create=create, reporter=reporter)
        except BaseException:
            held.restore()
            raise
        opened.max_memory, opened.offload_folder = self.max_memory, self.offload_folder
        try:
            with discarded_unless_used(opened, new=not exists and not scratch):
                held.release()
                yield opened
        finally:
            reporter.stop()
            opened.close()
