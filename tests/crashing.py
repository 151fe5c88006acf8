"""Kill -9 at every instant: a child process dies just before the n-th change that it would make, for every n.

What is on the disk after a kill depends on which changes came before it, so dying before each of them once is dying at
any instant. Changes are the renames, removals and openings for writing below a folder, and the writes and commits of
the ledger.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

MOST = 200
_FILES = frozenset(("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"))
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STATEMENTS = ("INSERT", "UPDATE", "DELETE")


def deaths(act: Callable[[], object], below: Path) -> Iterator[int]:
    """Run *act* in child after child, on what the ones before left; the n-th dies before its n-th change below the
    folder *below*. Yields after each death, and ends when a child came to the end of *act*."""
    for instant in range(1, MOST):
        child = os.fork()
        if not child:
            _run(act, below, instant)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            assert instant > 1, "nothing was changed"
            return
        assert code == -signal.SIGKILL, "the child failed: see its standard error"
        yield instant
    raise AssertionError(f"still changing something after {MOST} changes")


def _run(act: Callable[[], object], below: Path, instant: int) -> None:
    code = 1
    try:
        _die_at(instant, below)
        act()
        code = 0
    finally:  # never back into the tests
        if code:
            traceback.print_exc()
        os._exit(code)


def _die_at(instant: int, below: Path) -> None:
    left = itertools.count(instant - 1, -1)

    def change() -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(name: str, args: tuple[Any, ...]) -> None:
        if name in _FILES and (name != "open" or args[2] & _WRITING) and _is_below(args[0], below):
            change()

    sys.addaudithook(heard)
    event.listen(Engine, "before_cursor_execute", lambda *about: about[2].startswith(_STATEMENTS) and change())
    event.listen(Engine, "commit", lambda *_: change())


def _is_below(path: object, below: Path) -> bool:
    """Whether *path* lies in that folder; a name without one belongs to a tree that is being removed there."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    text = os.fsdecode(path)
    return not os.path.isabs(text) or text.startswith(f"{below}{os.sep}")
