"""A folder, or a file, appears whole or not at all.

:func:`building` hands out a hidden sibling of the target; when its block ends well, every file in it is on the disk
(fsync) before the folder gets its name (one rename), and the parent is synced after. When the block fails, Ctrl-C
included, the sibling is removed. A process that is killed outright leaves its sibling behind; the next one that builds
the same target removes it (:func:`sweep`), since the dead one's lock on it is gone. Files do the same with
:func:`new_sibling`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl

    HAVE_LOCKS = True
except ImportError:  # Windows: siblings left by a killed process stay until the user removes them
    HAVE_LOCKS = False

YOUNG = 60.0
"""Seconds in which an unlocked sibling may still be one whose owner is about to lock it."""


@contextmanager
def building(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new empty folder to fill, which becomes *target* when the block ends without an exception.

    Args:
        replace: a folder that has the name gives way when the new one is complete, and comes back if that fails. Where
            the process is killed between the two renames, :func:`sweep` puts it back.

    Raises:
        FileExistsError: *target* exists, at the start or by the time the folder is complete (and not *replace*).
        OSError: the disk is full, or the place cannot be written to.
    """
    if os.path.lexists(target) and not replace:
        raise FileExistsError(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    # Not tempfile.mkdtemp: its folders are readable by their owner alone, and stay so after the rename.
    temporary = _sibling(target, "tmp")
    temporary.mkdir()
    lock = _lock(temporary)
    try:
        yield temporary
        sync_tree(temporary)
        if replace and os.path.lexists(target):
            _exchange(temporary, target)
        elif os.path.lexists(target):  # os.rename would replace an empty folder without a word
            raise FileExistsError(str(target))
        else:
            os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def new_sibling(target: Path) -> Iterator[Path]:
    """A new empty file beside *target* to write to and to rename. It is gone when the block ends, if it is still there;
    what killed processes left beside *target* is removed first.

    Raises:
        OSError: the place cannot be written to.
    """
    sweep(target)
    temporary = _sibling(target, "tmp")
    temporary.touch(exist_ok=False)
    lock = _lock(temporary)
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def sweep(target: Path) -> None:
    """Remove the hidden files and folders that killed processes left beside *target*, those of living ones aside. A
    folder that had given way to a new *target* which never came is put back."""
    for path in _siblings(target, "old"):
        lock = _lock(path)
        if lock is None:
            continue
        if os.path.lexists(target):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.rename(path, target)
        os.close(lock)
    for path in _siblings(target, "tmp"):
        if time.time() - path.lstat().st_mtime < YOUNG:
            continue
        lock = _lock(path)
        if lock is not None:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            os.close(lock)


def _exchange(new: Path, target: Path) -> None:
    """Give *new* the name of the folder *target*, and remove that."""
    old = _sibling(target, "old")
    lock = _lock(target)  # goes with it under its new name: nobody takes it for abandoned
    try:
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def sync_tree(folder: Path) -> None:
    """Force every file below *folder*, and the folders themselves, onto the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Force the names in *folder* onto the disk; without it a rename may be forgotten in a power cut."""
    if os.name == "nt":  # a folder cannot be opened there, and a rename is durable enough
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{kind}"


def _siblings(target: Path, kind: str) -> list[Path]:
    """The folders and ordinary files that :func:`_sibling` named; no links."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.{kind}")
    if not target.parent.is_dir():
        return []
    found = [path for path in sorted(target.parent.iterdir()) if name.fullmatch(path.name) and not path.is_symlink()]
    return [path for path in found if path.is_dir() or path.is_file()]


def _lock(path: Path) -> int | None:
    """An open descriptor that holds the lock on *path*; None if another process holds it, or there are no locks."""
    if not HAVE_LOCKS:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
