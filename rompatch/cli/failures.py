"""What went wrong, as a small paragraph on stderr and an exit code. No traceback reaches a user who did not ask."""

from __future__ import annotations

import errno
import os
import traceback

import click

from rompatch.cli.render import plain
from rompatch.errors import RompatchError

USAGE, INTERRUPTED, BUG = 2, 130, 70
DEBUG_VARIABLE = "ROMPATCH_DEBUG"

_FROM_THE_SYSTEM = {
    errno.ENOSPC: "Make room on that disk, then try again.",
    errno.EDQUOT: "Make room within your quota, then try again.",
    errno.EFBIG: "The limit on file sizes is in the way (`ulimit -f`).",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EACCES: "Check the permissions, or choose another place.",
    errno.EPERM: "Check the permissions, or choose another place.",
    errno.EIO: "Check the disk.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path.",
    errno.EISDIR: "Check the path.",
    errno.EMFILE: "Too many files are open (`ulimit -n`).",
    errno.ENAMETOOLONG: "Choose a shorter path.",
}
"""Errors of the operating system that are no bug of ours, and what to do about each."""


def explain(problem: BaseException, color: bool | None) -> int:
    """Write *problem* to stderr and return the exit code. With ``ROMPATCH_DEBUG=1`` its traceback comes first."""
    if isinstance(problem, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    if os.environ.get(DEBUG_VARIABLE) == "1":
        click.echo("".join(traceback.format_exception(problem)), err=True, nl=False)
    lines, code = _lines(problem)
    head = click.style("error:", fg="red", bold=True)
    click.echo(f"{head} {lines[0]}", err=True, color=color)
    for line in lines[1:]:
        click.echo(f"  {line}", err=True, color=color)
    return code


def _lines(problem: BaseException) -> tuple[list[str], int]:
    if isinstance(problem, RompatchError):
        return paragraph(problem), problem.exit_code
    if isinstance(problem, click.ClickException):
        return _usage(problem), problem.exit_code
    if isinstance(problem, MemoryError):
        return ["There is not enough memory.", "next: Use a smaller model, or --dtype bfloat16."], 1
    if isinstance(problem, OSError) and problem.errno in _FROM_THE_SYSTEM:
        where = f" ({problem.filename})" if problem.filename else ""
        return [f"{problem.strerror}{plain(where)}.", f"next: {_FROM_THE_SYSTEM[problem.errno]}"], 1
    return [
        f"this is a bug in rompatch: {type(problem).__name__}: {plain(str(problem))}",
        f"next: Please report it with the traceback that {DEBUG_VARIABLE}=1 prints.",
    ], BUG


def paragraph(problem: RompatchError) -> list[str]:
    """What was asked; then what was expected, what was found and what to do next, each on a line of its own."""
    lines = [plain(problem.message)]
    for name, value in (("expected", problem.expected), ("found", problem.found), ("next", problem.next_step)):
        if value not in (None, ""):
            lines.append(f"{name}: {plain(str(value))}")
    return lines


def _usage(problem: click.ClickException) -> list[str]:
    lines = [plain(problem.format_message())]
    context = getattr(problem, "ctx", None)
    if context is not None:
        lines += [
            f"usage: {' '.join(context.get_usage().split()).removeprefix('Usage: ')}",
            f"next: `{context.command_path} --help` explains it.",
        ]
    return lines
