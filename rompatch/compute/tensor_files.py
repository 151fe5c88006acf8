"""Large tensors onto the disk: atomically, durably, and without a second copy of them in memory."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rompatch.errors import OutputError
from rompatch.folders import sync_folder

_ABANDONED = 3600.0
"""Seconds without a change after which what a killed process left behind is removed."""


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Put a safetensors file at *path*: written beside it, synced, renamed, its folder synced.

    ``safetensors.torch.save`` would hold its bytes twice; ``save_file`` does not, but syncs nothing and makes files
    that their owner alone may read. It gets a folder of its own, so that nothing of it is left when it fails.

    Raises:
        OutputError: it cannot be written; what was at *path* is untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary.mkdir()
        file = temporary / path.name
        save_file(tensors, file, metadata)
        file.chmod(stat.S_IMODE(temporary.stat().st_mode) & 0o666)  # the umask's
        with file.open("r+b") as written:
            os.fsync(written.fileno())
        os.replace(file, path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as problem:
        raise OutputError(
            f"The key statistics cannot be written to {path}.",
            found=str(problem),
            next_step="Free some space, or set ROMPATCH_CACHE to another folder.",
        ) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    for folder in path.parent.glob(f".{path.name}.????????.tmp"):
        with suppress(OSError):  # another process that saves the same has just finished with it
            parts = [folder, *folder.iterdir()] if folder.is_dir() else [folder]
            if time.time() - max(part.lstat().st_mtime for part in parts) > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)
