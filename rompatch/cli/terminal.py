"""The two streams: notes and progress go to stderr, data to stdout."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, TextIO

import click

from rompatch.reporting import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def prepare_streams() -> None:
    """Characters that the terminal's encoding lacks are written as escapes, not answered with an exception."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def wants_color(choice: bool | None) -> bool | None:
    """What click is told: the user's choice, else False where ``NO_COLOR`` is set, else None (look at the stream)."""
    if choice is not None:
        return choice
    return False if os.environ.get("NO_COLOR") else None


def is_terminal(stream: TextIO) -> bool:
    """Whether a person reads *stream* as it is written."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class TerminalReporter(Reporter):
    """Notes as lines on stderr; one progress bar there, where stderr is a terminal. rich is imported for the bar only.

    Args:
        quiet: say nothing.
        color: the user's choice, if any.
    """

    def __init__(self, *, quiet: bool = False, color: bool | None = None) -> None:
        self.quiet = quiet
        self.color = wants_color(color)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._overall: tuple[str, int, int] | None = None
        self._overall_task: TaskID | None = None
        self._began: tuple[float, int] | None = None

    def note(self, text: str) -> None:
        """A sentence on stderr; it takes the place of the bar, which comes back with the next step."""
        if self.quiet:
            return
        self.stop()
        click.echo(click.style(text, dim=True), err=True, color=self.color)

    def step(self, phase: str, done: int, total: int) -> None:
        """Draw the bar of *phase*; without a terminal, nothing."""
        if self.quiet or not is_terminal(sys.stderr):
            return
        bar = self._started()
        if self._task is None or phase != self._phase:
            if self._task is not None:
                bar.remove_task(self._task)
            self._task, self._phase = bar.add_task(phase, total=total or None), phase
        bar.update(self._task, completed=done, total=total or None)
        if total and done >= total:
            self._finish_step()

    def overall(self, phase: str, done: int, total: int) -> None:
        """Draw a bar for the whole job above that of its steps, with the time that is left at the pace so far."""
        if self.quiet or not is_terminal(sys.stderr):
            return
        now = time.monotonic()
        if self._began is None:
            self._began = now, done
        self._overall = f"{phase}{_time_left(*self._began, now, done, total)}", done, total
        bar = self._started()
        assert self._overall_task is not None  # made with the bar
        bar.update(self._overall_task, description=self._overall[0], completed=done, total=total)
        if done >= total:
            self._overall = self._began = None
            self.stop()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._task, self._overall_task = None, None, None

    def _started(self) -> Progress:
        """The bars on the screen, that of the whole job first."""
        if self._bar is None:
            self._bar = _new_bar(self.color)
            self._bar.start()
        if self._overall is not None and self._overall_task is None:
            phase, done, total = self._overall
            self._overall_task = self._bar.add_task(phase, total=total, completed=done)
        return self._bar

    def _finish_step(self) -> None:
        if self._overall is None:
            self.stop()
        elif self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def _time_left(began: float, first: int, now: float, done: int, total: int) -> str:
    """ ", 12 min left" at the pace since *began*; nothing before anything is done."""
    if done <= first or done >= total:
        return ""
    seconds = (now - began) / (done - first) * (total - done)
    if seconds < 90:
        return f", {seconds:.0f} s left"
    return f", {seconds / 60:.0f} min left" if seconds < 5400 else f", {seconds / 3600:.1f} h left"


def _new_bar(color: bool | None) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, no_color=True if color is False else None)
    return Progress(*columns, console=console, transient=True)
