"""The bar of a long job: above those of its steps, with the time that is left."""

from __future__ import annotations

import io
import sys

import pytest

from rompatch.cli.terminal import TerminalReporter, _time_left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("began", "first", "now", "done", "total", "said"),
    [
        (0.0, 0, 10.0, 0, 100, ""),
        (0.0, 0, 10.0, 20, 100, ", 40 s left"),
        (5.0, 50, 65.0, 60, 100, ", 4 min left"),  # what was done before says nothing about the pace
        (0.0, 0, 3600.0, 10, 100, ", 9.0 h left"),
        (0.0, 0, 10.0, 100, 100, ""),
    ],
)
def test_the_time_left_follows_from_the_pace(
    began: float, first: int, now: float, done: int, total: int, said: str
) -> None:
    assert _time_left(began, first, now, done, total) == said


def test_the_whole_job_keeps_its_bar_while_steps_and_notes_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm-256color")
    reporter = TerminalReporter()
    reporter.overall("records", 0, 7)
    reporter.step("value", 3, 3)
    reporter.step("scoring", 1, 2)
    reporter.note("a note")
    reporter.overall("records (1 failed)", 2, 7)
    text = shown.getvalue()
    for words in ("records", "0/7", "scoring", "a note", "records (1 failed)"):
        assert words in text
    assert reporter._bar is not None
    reporter.overall("records", 7, 7)
    assert reporter._bar is None


def test_a_pipe_and_quiet_get_no_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    TerminalReporter().overall("records", 1, 7)
    assert capsys.readouterr().err == ""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    TerminalReporter(quiet=True).overall("records", 1, 7)
    assert shown.getvalue() == ""
