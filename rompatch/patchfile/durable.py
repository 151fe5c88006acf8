"""Bytes onto the disk, atomically and durably: temp file beside the target, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from rompatch.errors import OutputError
from rompatch.folders import sync_folder

_REMEDIES = {
    errno.ENOSPC: "Free some space on that disk and try again.",
    errno.EDQUOT: "Your disk quota is used up: free some space and try again.",
    errno.EFBIG: "The file size limit is too low (`ulimit -f`): raise it and try again.",
    errno.EROFS: "That file system is read-only: choose another folder, or remount it writable.",
    errno.EACCES: "You may not write there: change the folder's permissions or choose another.",
    errno.EPERM: "You may not write there: change the folder's permissions or choose another.",
    errno.ENOENT: "Create the folder first.",
}


def atomic_write(path: Path, data: bytes) -> None:
    """Put *data* at *path* atomically and durably: temp file beside it, fsync, rename, fsync of the folder.

    Raises:
        OutputError: writing failed; the temporary file is removed and what was at *path* is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        _write_durably(temporary, data)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"Writing {path} failed: {error.strerror or error}.",
                next_step=_REMEDIES.get(error.errno or 0, "Check the path and the disk, then try again."),
                path=path,
            ) from error
        raise


def is_temporary(path: Path) -> bool:
    """Whether *path* has the name of a temporary file that :func:`atomic_write` left behind when it was killed."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _write_durably(path: Path, data: bytes) -> None:
    # os.open, not tempfile: patch files are for sharing, so the mode is the umask's and not 0600.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
