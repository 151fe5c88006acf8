"""A bundle's bytes follow from its content, are pinned, and are those that zipfile would write."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import parts, rezipped, tiny_bundle
from tiny_patches import tiny_adapter, tiny_patch

from rompatch.bundle import entry_refs, open_bundle, to_bytes
from rompatch.bundle.limits import MANIFEST
from rompatch.errors import BundleError

GOLDEN_SHA256 = "144cf0ae0f8c6357d8d8b70fe87b08e4e91ec24db3db5a410ec61410b5288242"
PAGE = Path(__file__).parents[2] / "docs" / "bundle-format.md"


def test_a_fixed_bundle_has_the_pinned_bytes() -> None:
    assert hashlib.sha256(tiny_bundle()).hexdigest() == GOLDEN_SHA256


def test_the_standard_library_reads_it_and_writes_the_same_bytes() -> None:
    data = tiny_bundle()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(archive.namelist())
    assert rezipped(data, lambda info, content: (info, content)) == data


def test_the_order_in_which_patches_come_changes_nothing() -> None:
    first, second = tiny_patch(), tiny_adapter()
    assert tiny_bundle(first, second) == tiny_bundle(second, first)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    manifest, contents = parts()
    path = tmp_path / "b.rompatch"
    path.write_bytes(to_bytes(manifest, contents, b"a signature"))
    with open_bundle(path) as bundle:
        assert bundle.manifest == manifest
        assert {patch.id for patch in bundle.patches()} == {tiny_patch().id, tiny_adapter().id}
        assert bundle.signature == b"a signature"
        assert bundle.runs[0].scores == (("post", "s", 0.5, 3),)
        assert bundle.sha256 == hashlib.sha256(manifest.to_bytes()).hexdigest()


def test_a_signature_changes_neither_the_manifest_nor_its_hash(tmp_path: Path) -> None:
    manifest, contents = parts()
    hashes = set()
    for signature in (None, b"x"):
        path = tmp_path / "b"
        path.write_bytes(to_bytes(manifest, contents, signature))
        with open_bundle(path) as bundle:
            hashes.add(bundle.sha256)
    assert len(hashes) == 1


def test_a_manifest_of_other_entries_is_not_written() -> None:
    manifest, contents = parts()
    with pytest.raises(BundleError, match="other entries"):
        to_bytes(manifest, contents | {"runs.json": b"[]"})
    with pytest.raises(BundleError, match="not those of its patches"):
        to_bytes(replace(manifest, entries=()), {})


def file_by_the_page(entries: dict[str, bytes]) -> bytes:
    """A second implementation of the container, from docs/bundle-format.md alone."""
    body, directory = b"", b""
    for name in sorted(entries):
        data = entries[name]
        about = struct.pack("<HHHHH", 20, 0, 0, 0, 33) + struct.pack("<III", zlib.crc32(data), len(data), len(data))
        directory += b"PK\x01\x02" + struct.pack("<H", 0x0314) + about + struct.pack("<HHHHH", len(name), 0, 0, 0, 0)
        directory += struct.pack("<II", 0o100644 << 16, len(body)) + name.encode()
        body += b"PK\x03\x04" + about + struct.pack("<HH", len(name), 0) + name.encode() + data
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def test_the_container_is_what_the_page_says() -> None:
    manifest, contents = parts()
    assert file_by_the_page({**contents, MANIFEST: manifest.to_bytes()}) == tiny_bundle()
    assert manifest.entries == entry_refs(contents)


def test_the_page_names_every_limit() -> None:
    limits = " ".join(PAGE.read_text("utf-8").split("## Limits")[1].split("##")[0].split())
    for words in ("2^30 bytes", "2^24 bytes", "2^16 bytes", "16384 patches", "65536 revisions", "100 characters"):
        assert words in limits
