"""The zip around a bundle's entries, spelled byte by byte: equal content gives equal bytes.

Entries are stored, not compressed: patches are float32 noise that hardly shrinks, and what is not compressed cannot be
a bomb. Every field that is no name, size, checksum or offset is fixed, so a reader can demand the exact bytes: nothing
can hide between entries, behind them, or in flags. A test holds that the standard library's ``zipfile`` writes the
same bytes and reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

LOCAL_SIZE, CENTRAL_SIZE, END_SIZE = 30, 46, 22

_VERSION = 20
_UNIX = 3
_DATE = (0 << 9) | (1 << 5) | 1
"""1 January 1980, midnight: the earliest that a zip can say."""

_ORDINARY_FILE = 0o100644 << 16


@dataclass(frozen=True)
class Entry:
    """One stored entry: its name (ASCII), its size in bytes and the CRC-32 of its content."""

    name: str
    size: int
    crc: int

    @property
    def local_size(self) -> int:
        """Bytes from the start of its local header to the start of the next one."""
        return LOCAL_SIZE + len(self.name) + self.size


def local_header(entry: Entry) -> bytes:
    """What stands before an entry's content."""
    name = entry.name.encode("ascii")
    fields = (b"PK\x03\x04", _VERSION, 0, 0, 0, _DATE, entry.crc, entry.size, entry.size, len(name), 0)
    return struct.pack("<4s5H3L2H", *fields) + name


def central_directory(entries: Iterable[Entry]) -> bytes:
    """What stands behind the last entry: one record an entry, then the end record."""
    records, offset, count = [], 0, 0
    for entry in entries:
        name = entry.name.encode("ascii")
        fields = (b"PK\x01\x02", _VERSION, _UNIX, _VERSION, 0, 0, 0, 0, _DATE, entry.crc, entry.size, entry.size)
        more = (len(name), 0, 0, 0, 0, _ORDINARY_FILE, offset)
        records.append(struct.pack("<4s4B4H3L5H2L", *fields, *more) + name)
        offset, count = offset + entry.local_size, count + 1
    directory = b"".join(records)
    return directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), offset, 0)
