"""Files copied whole, the cheapest way that the file system has: shared blocks, in the kernel, or through memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

try:
    from fcntl import ioctl

    HAVE_CLONES = True
except ImportError:  # Windows
    HAVE_CLONES = False

OnBytes = Callable[[int], None]
"""Hears how many bytes were written since it was last called."""

_FICLONE = 0x40049409
"""Linux: make this file share all blocks of that one (btrfs, xfs, bcachefs, ...)."""

_STEP = 1 << 26
_UNABLE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENOTTY, errno.EBADF)
"""What a file system answers that cannot do it so; anything else is an error of its own."""


def copy_file(source: Path, target: Path, on_bytes: OnBytes) -> None:
    """Copy the content of *source* to the new file *target*. Mode and times are the new file's own."""
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        size = os.fstat(reader.fileno()).st_size
        if _cloned(reader, writer):
            on_bytes(size)
            return
        done = _copied_in_kernel(reader, writer, size, on_bytes)
        reader.seek(done)
        writer.seek(done)
        while piece := reader.read(1 << 22):
            write_whole(writer, piece)
            on_bytes(len(piece))


def write_whole(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of *data* to an unbuffered file, which may take less at once: so it does when the disk becomes full.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def link_file(source: Path, target: Path) -> bool:
    """Give the file *source* (not a link to it) the further name *target*; False where the file system cannot."""
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno in (*_UNABLE, errno.EMLINK):
            return False
        raise
    return True


def _cloned(reader: BinaryIO, writer: BinaryIO) -> bool:
    if not HAVE_CLONES:
        return False
    try:
        ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError as error:
        if error.errno in _UNABLE:
            return False
        raise
    return True


def _copied_in_kernel(reader: BinaryIO, writer: BinaryIO, size: int, on_bytes: OnBytes) -> int:
    """How many bytes were copied so, from the beginning."""
    done = 0
    try:
        while done < size:
            step = os.copy_file_range(reader.fileno(), writer.fileno(), min(size - done, _STEP), done, done)
            if step == 0:
                break
            done += step
            on_bytes(step)
    except AttributeError:
        pass  # not on this system
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
    return done
