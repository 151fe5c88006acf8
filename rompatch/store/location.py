"""Where the store is: a folder ``.rompatch`` found upward from the working directory, like ``.git``.

.rompatch/
  ledger.db                        the ledger (SQLite, WAL)
  patches/<64 hex>.safetensors     one file a patch
"""

from __future__ import annotations

import os
from pathlib import Path

from rompatch.errors import StoreError

FOLDER = ".rompatch"
ENVIRONMENT = "ROMPATCH_STORE"


def ledger_path(store: Path) -> Path:
    """The ledger's database file in the folder *store*."""
    return store / "ledger.db"


def patches_path(store: Path) -> Path:
    """The folder of patch files in the folder *store*."""
    return store / "patches"


def find_store(explicit: Path | None, start: Path) -> Path | None:
    """The store to use: *explicit*, else ``ROMPATCH_STORE``, else the nearest ``.rompatch`` at or above *start*.

    A path that was named (by argument or environment) is returned whether it exists or not; None means that nothing
    was named and nothing found. Writes nothing.
    """
    if explicit is not None:
        return explicit
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named).expanduser()
    here = start.absolute()
    for folder in (here, *here.parents):
        if (folder / FOLDER).is_dir():
            return folder / FOLDER
    return None


def create_store(path: Path) -> Path:
    """Create the folders of a store at *path*; an existing store is left as it is. Writes folders only.

    Raises:
        StoreError: the folders cannot be made.
    """
    try:
        patches_path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be created: {error.strerror or error}.",
            next_step="Choose a place you may write to with --store or ROMPATCH_STORE.",
            path=path,
        ) from error
    return path
