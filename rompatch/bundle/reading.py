"""A bundle's zip, read as if somebody hostile had made it.

``zipfile`` reads the directory, so that what is wrong has a name (encrypted, twice, a link, ...); the entries' bytes
are read at the offsets that the canonical layout gives, never through a decompressor, and every byte that is no content
is compared with :mod:`rompatch.bundle.layout`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rompatch.bundle.layout import CENTRAL_SIZE, END_SIZE, Entry, central_directory, local_header
from rompatch.bundle.limits import (
    MANIFEST,
    MAX_BUNDLE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_PATCHES,
    MAX_SIGNATURE_BYTES,
    RUNS,
    SIGNATURE,
    is_known,
    naming,
)
from rompatch.patchfile.checks import MAX_FILE_BYTES, DamageError, require

_MAX_ENTRIES = MAX_PATCHES + 3
_LONGEST_NAME = 128
_SIZE_OF = {MANIFEST: MAX_MANIFEST_BYTES, RUNS: MAX_MANIFEST_BYTES, SIGNATURE: MAX_SIGNATURE_BYTES}


class Container:
    """The open zip of a bundle, its directory checked. Use :func:`opened`."""

    def __init__(self, file: BinaryIO, entries: Sequence[Entry]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, Entry]] = {}
        offset = 0
        for entry in entries:
            self._places[entry.name] = (offset, entry)
            offset += entry.local_size

    @property
    def sizes(self) -> dict[str, int]:
        """Name to size in bytes of every entry, in order."""
        return {name: entry.size for name, (_, entry) in self._places.items()}

    def read(self, name: str) -> bytes:
        """The content of the entry *name*, its checksum tested.

        Raises:
            DamageError: its local header or its content is not what the directory says.
        """
        offset, entry = self._places[name]
        self._file.seek(offset)
        header = local_header(entry)
        require(self._file.read(len(header)) == header, f"the header of its entry {name} is not as specified")
        data = self._file.read(entry.size)
        require(len(data) == entry.size and zlib.crc32(data) == entry.crc, f"its entry {name} is damaged")
        return data


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[Container]:
    """The container in the file at *path*. Contents are checked when they are read, everything else here.

    Raises:
        BundleError: missing, no zip, truncated, or not laid out as a bundle; also for a ``DamageError`` inside the
            ``with`` block.
    """
    with naming(str(path)):
        require(stat.S_ISREG(path.stat().st_mode), "it is not an ordinary file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            require(size <= MAX_BUNDLE_BYTES, "it is too large", f"at most {MAX_BUNDLE_BYTES} bytes", f"{size} bytes")
            directory = _end_record(file, size)
            entries = [_entry(info) for info in _listed(file)]
            _check_names([entry.name for entry in entries])
            file.seek(size - directory - END_SIZE)
            same = central_directory(entries) == file.read(directory + END_SIZE)
            reach = sum(entry.local_size for entry in entries) + directory + END_SIZE
            require(
                same and reach == size, "its zip directory is not as specified (overlapping or hidden parts, flags)"
            )
            yield Container(file, entries)


def _end_record(file: BinaryIO, size: int) -> int:
    """Bytes of the directory, from the end record; checked before ``zipfile`` believes them."""
    require(size >= END_SIZE, "it is too short to be a zip", f"at least {END_SIZE} bytes", f"{size} bytes")
    file.seek(size - END_SIZE)
    mark, _, _, _, count, directory, start, comment = struct.unpack("<4s4H2LH", file.read(END_SIZE))
    require(mark == b"PK\x05\x06" and comment == 0, "it is no zip, or truncated, or something was appended to it")
    require(1 <= count <= _MAX_ENTRIES, "its number of entries is absurd", f"1 to {_MAX_ENTRIES}", count)
    most = count * (CENTRAL_SIZE + _LONGEST_NAME)
    require(directory <= most, "its zip directory is absurdly long", f"at most {most} bytes", directory)
    require(start + directory + END_SIZE == size, "its length does not fit its zip directory (truncated?)")
    return int(directory)


def _listed(file: BinaryIO) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, EOFError, OverflowError) as error:
        raise DamageError(f"its zip directory cannot be read ({error})") from None


def _entry(info: zipfile.ZipInfo) -> Entry:
    """The entry that *info* describes, if it is an ordinary stored file of a known name and size."""
    shown = repr(info.orig_filename)[:100]
    require(is_known(info.orig_filename), f"it has an entry {shown}, which no bundle has")
    require(not info.flag_bits & 0x41, f"its entry {shown} is encrypted")
    require(stat.S_ISREG(info.external_attr >> 16), f"its entry {shown} is no ordinary file (a link?)")
    require(info.compress_type == zipfile.ZIP_STORED, f"its entry {shown} is compressed", "stored entries")
    require(
        info.compress_size == info.file_size, f"its entry {shown} has two sizes", info.compress_size, info.file_size
    )
    most = _SIZE_OF.get(info.orig_filename, MAX_FILE_BYTES)
    require(info.file_size <= most, f"its entry {shown} is too large", f"at most {most} bytes", info.file_size)
    return Entry(info.orig_filename, info.file_size, info.CRC)


def _check_names(names: Sequence[str]) -> None:
    require(len(set(names)) == len(names), "it has two entries of one name")
    require(list(names) == sorted(names), "its entries are not in order of name")
    require(MANIFEST in names, f"it has no {MANIFEST}")
