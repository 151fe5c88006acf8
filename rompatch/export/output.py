"""Where an export goes: a new file or folder, whole or not at all, never inside the base."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rompatch.errors import OutputError
from rompatch.export.provenance import RECORD_KEY
from rompatch.folders import building, new_sibling, sweep, sync_folder

_LOOK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(out: Path, *, inside: Path | None, force: bool = False) -> Iterator[Path]:
    """A path beside *out* to write to; when the block ends well, the file there is on the disk and becomes *out*.

    Args:
        inside: the base's folder, in which nothing is written.
        force: replace a file that exists, if it is an earlier export.

    Raises:
        OutputError: *out* exists or lies inside the base, or it cannot be written; nothing of it is left.
    """
    _refuse(out, inside, exists=os.path.lexists(out) and not (force and is_our_file(out)))
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with new_sibling(out) as temporary:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if os.path.lexists(out) and not force:
                raise FileExistsError(str(out))
            os.replace(temporary, out)
            sync_folder(out.parent)


@contextmanager
def new_folder(
    out: Path, *, inside: Path | None, force: bool = False, ours: Callable[[Path], bool] = lambda path: False
) -> Iterator[Path]:
    """A folder to fill that becomes *out* when the block ends well.

    Args:
        inside: the base's folder, in which nothing is written.
        force: replace a folder that exists, if it is *ours*: nobody's other files are deleted.

    Raises:
        OutputError: as :func:`new_file`.
    """
    _refuse(out, inside, exists=False)
    with _explained(out):
        sweep(out)  # which may put an earlier export back
    replace = force and out.is_dir() and not out.is_symlink() and ours(out)
    _refuse(out, inside, exists=os.path.lexists(out) and not replace)
    with _explained(out), building(out, replace=replace) as work:
        yield work


def is_our_file(path: Path) -> bool:
    """Whether *path* is a file that rompatch exported: the record is near its beginning in every form that has one."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return RECORD_KEY.encode() in file.read(_LOOK)


def _refuse(out: Path, inside: Path | None, *, exists: bool) -> None:
    if inside is not None and inside.resolve() in (out.resolve(), *out.resolve().parents):
        raise OutputError(
            f"The output {out} lies inside the base {inside}, which is never written to.",
            next_step="Name a place elsewhere.",
        )
    if exists:
        raise _exists(out)


def _exists(out: Path) -> OutputError:
    return OutputError(
        f"{out} exists already.",
        expected="a name that is not taken",
        next_step="Name another one; --force replaces an earlier export, and nothing else.",
    )


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise _exists(out) from error
    except OSError as error:
        full = error.errno in _FULL
        raise OutputError(
            f"The export {out} could not be written, and nothing of it was left there.",
            found=error.strerror or str(error),
            next_step="Make room, or name a place on another disk." if full else "Check the path and its permissions.",
        ) from error
