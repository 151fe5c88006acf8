"""The folder of patch files: ``<64 hex id>.safetensors``, written before the ledger's row (DESIGN, promise 5)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from rompatch import patchfile
from rompatch.errors import OutputError, StoreError
from rompatch.patch import SHORT_ID, Patch

SUFFIX = ".safetensors"
_ID = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The patch files in *folder*, by id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, patch_id: str) -> Path:
        """Where the file of that id is or would be.

        Raises:
            StoreError: not an id (64 lower-case hex digits), so no path is made of it.
        """
        if not _ID.fullmatch(patch_id):
            raise StoreError(f"{patch_id[:80]!r} is not a patch id.", expected="64 lower-case hex digits")
        return self.folder / f"{patch_id}{SUFFIX}"

    def put(self, patch: Patch) -> Path:
        """Write the file of *patch*, durably; one that is there is replaced by the same bytes. Writes.

        Raises:
            OutputError: the folder cannot be written to, the disk is full, ...
        """
        path = self.path(patch.id)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The folder {self.folder} cannot be made: {error.strerror or error}.") from error
        patchfile.write(patch, path)
        return path

    def get(self, patch_id: str) -> Patch:
        """The patch of that id, its content checked against the id. Reads only.

        Raises:
            StoreError: its file is missing.
            PatchFileError: its file is damaged or another patch's.
        """
        path = self.path(patch_id)
        if not path.exists():
            raise StoreError(
                f"The file of patch {patch_id[:SHORT_ID]} is missing.",
                expected=path,
                next_step="Restore it from a backup, or compute the patch anew; `rompatch fsck` names every such loss.",
                patch_id=patch_id,
            )
        return patchfile.read(path, expected_id=patch_id)

    def remove(self, patch_id: str) -> bool:
        """Delete the file of that id; False if there was none. Writes. Remove the ledger's row first.

        Raises:
            OutputError: it cannot be deleted.
        """
        path = self.path(patch_id)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror or error}.") from error
        return True

    def ids(self) -> tuple[str, ...]:
        """The ids that have a file, sorted. Reads only; the files' content is not looked at."""
        names = [path.name.removesuffix(SUFFIX) for path in self._listing() if path.name.endswith(SUFFIX)]
        return tuple(sorted(name for name in names if _ID.fullmatch(name)))

    def temporaries(self) -> tuple[Path, ...]:
        """Temporary files that a killed writer left behind (or that a running one is writing). Reads only."""
        return tuple(path for path in self._listing() if patchfile.is_temporary(path))

    def strangers(self) -> tuple[Path, ...]:
        """Everything else in the folder. Reads only."""
        known = {self.path(patch_id) for patch_id in self.ids()} | set(self.temporaries())
        return tuple(path for path in self._listing() if path not in known)

    def _listing(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return sorted(self.folder.iterdir())
        return []
