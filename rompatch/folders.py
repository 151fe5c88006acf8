"""A folder appears whole or not at all.

:func:`building` hands out a hidden sibling of the target; when its block ends well, every file in it is on the disk
(fsync) before the folder gets its name (one rename), and the parent is synced after. When the block fails, Ctrl-C
included, the sibling is removed. A process that is killed outright leaves its sibling behind; the next one that builds
the same target removes it, since the dead one's lock on it is gone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl

    HAVE_LOCKS = True
except ImportError:  # Windows: siblings left by a killed process stay until the user removes them
    HAVE_LOCKS = False

YOUNG = 60.0
"""Seconds in which an unlocked sibling may still be one whose owner is about to lock it."""


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A new empty folder to fill, which becomes *target* when the block ends without an exception.

    Raises:
        FileExistsError: *target* exists, at the start or by the time the folder is complete.
        OSError: the disk is full, or the place cannot be written to.
    """
    if os.path.lexists(target):
        raise FileExistsError(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    # Not tempfile.mkdtemp: its folders are readable by their owner alone, and stay so after the rename.
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir()
    lock = _lock(temporary)
    try:
        yield temporary
        sync_tree(temporary)
        if os.path.lexists(target):  # os.rename would replace an empty folder without a word
            raise FileExistsError(str(target))
        os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
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


def _lock(folder: Path) -> int | None:
    """An open descriptor that holds the lock on *folder*; None if another process holds it, or there are no locks."""
    if not HAVE_LOCKS:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}.????????.tmp"):
        if time.time() - path.lstat().st_mtime < YOUNG or path.is_symlink() or not path.is_dir():
            continue
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
