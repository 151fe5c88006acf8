"""Ways to call the program, and what to look at afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

import rompatch
from rompatch.patch import Patch
from rompatch.workflows.store import open_store

TOWER = ("create", "Eiffel Tower", "located in", "Rome")
QUICK = ("--statistics", "none", "--steps", "3")
CHECKOUT = Path(rompatch.__file__).parent.parent

Run = Callable[..., Result]


def process(
    *args: object, code: int | None = 0, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Call the program in a process of its own; *more* are environment variables."""
    command = [sys.executable, "-m", "rompatch", *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL
    )
    if code is not None:
        assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", **more}


def read(result: Result) -> Any:
    """The one JSON object on standard output."""
    data = json.loads(result.stdout)
    assert isinstance(data, dict)
    return data


def put(patch: Patch, folder: Path) -> str:
    """Put *patch* into the store of *folder*, file and row, as ``create`` would."""
    with open_store(folder / ".rompatch") as store:
        path = store.blobs.put(patch)
        record = store.ledger.add_patch(
            patch.header, patch_id=patch.id, file_size=path.stat().st_size, author="tester", message="a test"
        )
    return record.short_id


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below *folder* with its bytes, a database's own bookkeeping aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }
