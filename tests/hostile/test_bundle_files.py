"""Bundles nobody should trust: each is refused by name and reason, and the store stays as it was."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import parts, rezipped, tiny_bundle, tiny_run, with_manifest
from stores import empty_store
from tiny_patches import tiny_patch

from rompatch.bundle import entry_refs, runs_entry, signing, to_bytes
from rompatch.bundle.limits import patch_entry
from rompatch.errors import BundleError, RequestError, RompatchError
from rompatch.patch import canonical_json
from rompatch.workflows.bundling import read_bundle
from rompatch.workflows.store import Store, open_store

KEYGEN = shutil.which("ssh-keygen") or ""
DATA = tiny_bundle()
NAME = patch_entry(tiny_patch().id)


def renamed(new: str) -> bytes:
    """The runs under another name."""

    def change(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename == "runs.json":
            info.filename = new
        return info, data

    return rezipped(DATA, change)


def with_entry(name: str, content: bytes = b"x", *, mode: int = 0o100644, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO(DATA)
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr, info.compress_type = mode << 16, method
    with warnings.catch_warnings(), zipfile.ZipFile(out, "a") as archive:
        warnings.simplefilter("ignore")  # of a duplicate name
        archive.writestr(info, content)
    return out.getvalue()


def with_content(name: str, content: bytes) -> bytes:
    return rezipped(DATA, lambda info, data: (info, content if info.filename == name else data))


def compressed(content: bytes) -> bytes:
    def change(info: zipfile.ZipInfo, data: bytes) -> tuple[zipfile.ZipInfo, bytes]:
        if info.filename == NAME:
            info.compress_type, data = zipfile.ZIP_DEFLATED, content
        return info, data

    return rezipped(DATA, change)


def patched_directory(field_at: int, value: bytes, record: int = 0) -> bytes:
    """The bytes at *field_at* of one record of the directory replaced."""
    start = struct.unpack("<I", DATA[-6:-2])[0]
    for _ in range(record):
        start += 46 + struct.unpack("<H", DATA[start + 28 : start + 30])[0]
    return DATA[: start + field_at] + value + DATA[start + field_at + len(value) :]


def entry_named(data: dict[str, Any], **change: Any) -> None:
    data["entries"][0].update(change)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "text": (b"dear colleagues, please import this\n" * 9, "no zip"),
    "a tar": (b"\0" * 10240, "no zip"),
    "truncated": (DATA[:-1], "no zip, or truncated"),
    "cut in half": (DATA[: len(DATA) // 2], "no zip, or truncated"),
    "the first byte missing": (DATA[1:], "length does not fit"),
    "something before it": (b"#!/bin/sh\n" + DATA, "length does not fit"),
    "something after it": (DATA + b"\0", "no zip, or truncated, or something was appended"),
    "a comment": (DATA[:-2] + b"\x05\x00hello", "no zip"),
    "an extra entry": (with_entry("README.md"), "no bundle has"),
    "an absolute path": (renamed("/etc/passwd"), "no bundle has"),
    "a path upwards": (renamed("../../.ssh/authorized_keys"), "no bundle has"),
    "a path upwards among the patches": (renamed(f"patches/../{'0' * 64}.safetensors"), "no bundle has"),
    "backslashes": (renamed("patches\\x.safetensors"), "no bundle has"),
    "a drive": (renamed("C:/x"), "no bundle has"),
    "a folder": (renamed("patches/"), "no bundle has"),
    "another case": (renamed("MANIFEST.JSON"), "no bundle has"),
    "an id in capitals": (renamed(NAME.upper()), "no bundle has"),
    "a name with a line feed": (renamed("runs.json\n"), "no bundle has"),
    "a name that ends early": (renamed("runs.json\0.exe"), "no bundle has"),
    "a name twice": (with_entry("manifest.json"), "two entries of one name"),
    "a patch that the manifest does not list": (with_entry(patch_entry("f" * 64)), "not in order"),
    "a link": (with_entry("manifest.json.sig", b"/etc/passwd", mode=0o120777), "no ordinary file"),
    "a device": (with_entry("manifest.json.sig", b"", mode=0o060644), "no ordinary file"),
    "encrypted": (patched_directory(8, b"\x01\x00"), "is encrypted"),
    "strongly encrypted": (patched_directory(8, b"\x41\x00"), "is encrypted"),
    "a data descriptor": (patched_directory(8, b"\x08\x00"), "directory is not as specified"),
    "a time stamp": (patched_directory(12, b"\x01\x00"), "directory is not as specified"),
    "another mode": (patched_directory(38, struct.pack("<I", 0o100755 << 16)), "directory is not as specified"),
    "another disk": (patched_directory(34, b"\x01\x00"), "directory"),
    "overlapping entries": (patched_directory(42, b"\0\0\0\0", record=1), "directory is not as specified"),
    "an offset beyond the end": (patched_directory(42, b"\xff\xff\xff\x7f", record=1), "directory is not as specified"),
    "an entry larger than it is": (patched_directory(20, struct.pack("<II", 9999, 9999)), "not as specified"),
    "a manifest of 4 GB": (patched_directory(20, b"\xfe\xff\xff\xff" * 2), "too large"),
    "two sizes": (patched_directory(24, b"\xff\xff\xff\x00"), "two sizes"),
    "another checksum": (patched_directory(16, b"\0\0\0\0"), "header of its entry"),
    "a bomb": (compressed(b"\0" * (1 << 24)), "is compressed"),
    "another manifest's patch": (with_content(NAME, b"x" * 1400), "is not the one that its manifest lists"),
    "a patch one byte longer": (with_content(NAME, b"x" * 1401), "not those that its manifest lists"),
    "no manifest": (rezipped(DATA, lambda i, d: None if i.filename == "manifest.json" else (i, d)), "no manifest.json"),
    "no runs": (rezipped(DATA, lambda i, d: None if i.filename == "runs.json" else (i, d)), "not those that its"),
    "entries in another order": (
        rezipped(DATA, lambda i, d: (i, d))[:0] + with_entry("manifest.json.sig"),
        "not in order",
    ),
    "a manifest that is no JSON": (with_content("manifest.json", b"{"), "not JSON"),
    "a manifest that is a list": (with_content("manifest.json", b"[]"), "not a JSON object"),
    "a manifest that is not UTF-8": (with_content("manifest.json", b"\xff"), "not UTF-8"),
    "a manifest nested 100 000 deep": (with_content("manifest.json", b"[" * 100_000), "not JSON"),
    "a manifest with spaces": (with_manifest(lambda m: None, lambda m: canonical_json(m) + " "), "canonical spelling"),
    "a manifest with a key twice": (
        with_manifest(lambda m: None, lambda m: '{"stack":"x",' + canonical_json(m)[1:]),
        "occurs twice",
    ),
    "NaN": (
        with_manifest(lambda m: None, lambda m: canonical_json(m).replace('"all":1.5', '"all":NaN')),
        "contains NaN",
    ),
    "a number that overflows": (
        with_manifest(lambda m: None, lambda m: canonical_json(m).replace('"all":1.5', '"all":1e999')),
        "cannot be used",
    ),
    "a huge number": (with_manifest(lambda m: m.update(revision=10**60)), "64 bits"),
    "an unknown field": (with_manifest(lambda m: m.update(surprise=1)), "does not describe"),
    "a missing field": (with_manifest(lambda m: m.pop("base")), "no field 'base'"),
    "a future version": (with_manifest(lambda m: m.update(format_version=2, surprise=1)), "Upgrade rompatch"),
    "version 0": (with_manifest(lambda m: m.update(format_version=0)), "format version is unknown"),
    "version true": (with_manifest(lambda m: m.update(format_version=True)), "wrong type"),
    "a stack of no name": (with_manifest(lambda m: m.update(stack="")), "no name"),
    "a stack named by control characters": (with_manifest(lambda m: m.update(stack="x\x1b[2J")), "no name"),
    "a stack that is a number": (with_manifest(lambda m: m.update(stack=7)), "wrong type"),
    "a wrong hash": (with_manifest(lambda m: entry_named(m, sha256="0" * 64)), "not the one that its manifest lists"),
    "a hash in capitals": (with_manifest(lambda m: entry_named(m, sha256="A" * 64)), "hash of an entry"),
    "a size of its own": (with_manifest(lambda m: entry_named(m, size=1)), "not those that its manifest lists"),
    "a negative size": (with_manifest(lambda m: entry_named(m, size=-1)), "size or hash"),
    "an entry upwards": (with_manifest(lambda m: entry_named(m, name="../x")), "no entry of a bundle"),
    "the manifest listed": (with_manifest(lambda m: entry_named(m, name="manifest.json")), "no entry of a bundle"),
    "the signature listed": (with_manifest(lambda m: entry_named(m, name="manifest.json.sig")), "no entry of a bundle"),
    "no patches": (with_manifest(lambda m: m.update(patches=[])), "number of patches"),
    "patches an object": (with_manifest(lambda m: m.update(patches={"a": 1})), "does not describe"),
    "a patch twice": (with_manifest(lambda m: m.update(patches=m["patches"][:1] * 2)), "in order, each once"),
    "a patch of no id": (with_manifest(lambda m: m["patches"][0].update(id="../../x")), "64 lower-case hex"),
    "an author that is a list": (with_manifest(lambda m: m["patches"][0].update(author=[])), "neither text nor null"),
    "a time that is none": (with_manifest(lambda m: m["patches"][0].update(created_at="now")), "no time"),
    "measurements of text": (with_manifest(lambda m: m["patches"][0].update(measurements="x")), "no JSON object"),
    "a long text": (with_manifest(lambda m: m["patches"][0].update(message="x" * 100_000)), "too long"),
    "no revisions": (with_manifest(lambda m: m.update(revisions=[])), "number of revisions"),
    "revisions backwards": (with_manifest(lambda m: m["revisions"].reverse()), "cannot be used"),
    "a revision of an unknown patch": (
        with_manifest(lambda m: m["revisions"][0].update(members=["0" * 64])),
        "does not name",
    ),
    "another last revision": (with_manifest(lambda m: m["revisions"][1].update(members=[])), "last revision"),
    "members that are text": (with_manifest(lambda m: m["revisions"][1].update(members="ab")), "64 lower-case hex"),
    "a parent after its child": (with_manifest(lambda m: m["revisions"][1].update(parent=5)), "misnumbered"),
    "a parent that is text": (with_manifest(lambda m: m["revisions"][1].update(parent="0")), "parent of a revision"),
    "another base": (with_manifest(lambda m: m["base"].update(config_hash="0" * 64)), "another base than the bundle's"),
    "a base of more fields": (with_manifest(lambda m: m["base"].update(x=1)), "does not describe"),
}


def made(**runs: Any) -> bytes:
    """A bundle whose runs.json is right but for *runs*."""
    manifest, contents = parts(runs=False)
    contents |= runs_entry([replace(tiny_run(tiny_patch()), **runs)])
    return to_bytes(replace(manifest, entries=entry_refs(contents)), contents)


HOSTILE |= {
    "a run of another patch": (made(patch_id="0" * 64), "not in the bundle"),
    "a score twice": (made(scores=(("post", "s", 0.5, 3),) * 2), "a score twice"),
    "a score of text": (made(scores=(("post", "s", "1", 3),)), "is none"),
    "a score of no phase": (made(scores=(("during", "s", 1, 3),)), "is none"),
    "a score of too few parts": (made(scores=(("post", "s"),)), "is none"),
    "a run at no time": (made(created_at="yesterday"), "no time"),
    "settings of a list": (made(settings=[1]), "no JSON object"),
}


@pytest.fixture
def store(tmp_path: Path, new_ledger: Path) -> Any:
    with open_store(empty_store(new_ledger, tmp_path)) as opened:
        yield opened


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One store for all that must not change it: making one takes longer than refusing a file."""
    with open_store(tmp_path_factory.mktemp("untouched") / ".rompatch") as opened:
        yield opened


def state(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(store.root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_by_name_and_reason(name: str, untouched: Store, tmp_path: Path) -> None:
    (data, reason), store = HOSTILE[name], untouched
    path = tmp_path / "hostile.rompatch"
    path.write_bytes(data)
    before = state(store)
    with pytest.raises(BundleError) as caught:
        store.import_bundle(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.next_step
    assert state(store) == before


@pytest.mark.parametrize("position", range(0, len(DATA), 97))
def test_no_flipped_byte_goes_unnoticed(position: int, tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    path.write_bytes(DATA[:position] + bytes([DATA[position] ^ 1]) + DATA[position + 1 :])
    with pytest.raises(BundleError):
        read_bundle(path)


def test_a_file_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match="too large"):
        read_bundle(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "link to nowhere"])
def test_what_is_not_a_file_is_refused(kind: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nowhere":
        path.symlink_to("nowhere")
    with pytest.raises(BundleError, match=r"thing cannot be"):
        store.import_bundle(path)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two key pairs, ann and bob, and an allowed_signers file that names ann alone."""
    if not KEYGEN:
        pytest.fail("these tests need ssh-keygen (Debian: openssh-client)")
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob"):
        subprocess.run([KEYGEN, "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    (folder / "allowed").write_text(f"ann@example.org {(folder / 'ann.pub').read_text()}")
    return folder


def signed(keys: Path, name: str, path: Path, **about: Any) -> Path:
    manifest, contents = parts(**about)
    path.write_bytes(to_bytes(manifest, contents, signing.sign(manifest.to_bytes(), keys / name)))
    return path


def demand(store: Store, path: Path, keys: Path) -> Any:
    return store.import_bundle(path, allowed_signers=keys / "allowed", require_signature=True)


def test_a_bundle_signed_by_whom_it_should_be_is_imported(store: Store, keys: Path, tmp_path: Path) -> None:
    done = demand(store, signed(keys, "ann", tmp_path / "b"), keys)
    assert done.report.signer == "ann@example.org"
    assert done.revision.details["bundle"]["signer"] == "ann@example.org"


def test_a_bundle_signed_by_somebody_else_is_refused(store: Store, keys: Path, tmp_path: Path) -> None:
    path, before = signed(keys, "bob", tmp_path / "b"), state(store)
    with pytest.raises(BundleError, match="somebody whom"):
        demand(store, path, keys)
    with pytest.raises(BundleError, match="somebody whom"):  # a signature that is there is checked, demanded or not
        store.import_bundle(path, allowed_signers=keys / "allowed")
    assert state(store) == before


def test_a_signature_of_another_bundle_is_refused(store: Store, keys: Path, tmp_path: Path) -> None:
    foreign = signing.sign(parts(stack="other")[0].to_bytes(), keys / "ann")
    manifest, contents = parts()
    (tmp_path / "b").write_bytes(to_bytes(manifest, contents, foreign))
    with pytest.raises(BundleError, match="signed for another bundle"):
        demand(store, tmp_path / "b", keys)


def test_a_signature_for_another_use_is_refused(store: Store, keys: Path, tmp_path: Path) -> None:
    manifest, contents = parts()
    text = tmp_path / "text"
    text.write_bytes(manifest.to_bytes())
    subprocess.run([KEYGEN, "-Y", "sign", "-q", "-n", "file", "-f", keys / "ann", text], check=True)
    (tmp_path / "b").write_bytes(to_bytes(manifest, contents, (tmp_path / "text.sig").read_bytes()))
    with pytest.raises(BundleError, match="signed for another bundle, or for another use"):
        demand(store, tmp_path / "b", keys)


@pytest.mark.parametrize(
    "signature", [b"", b"junk", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"]
)
def test_a_signature_that_is_none_is_refused(signature: bytes, store: Store, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(to_bytes(*parts(), signature))
    with pytest.raises(BundleError):
        demand(store, tmp_path / "b", keys)


def test_an_unsigned_bundle_is_refused_where_a_signature_is_demanded(store: Store, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(DATA)
    with pytest.raises(BundleError, match="is not signed"):
        demand(store, tmp_path / "b", keys)
    with pytest.raises(RequestError, match="not whose"):
        store.import_bundle(tmp_path / "b", require_signature=True)


def test_without_ssh_keygen_it_says_so(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for attempt in (
        lambda: signing.sign(b"x", keys / "ann"),
        lambda: signing.verify(b"x", b"y", keys / "allowed"),
    ):
        with pytest.raises(BundleError, match="there is none on this machine"):
            attempt()


def test_keys_that_cannot_sign_are_named(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no key file"):
        signing.sign(b"x", tmp_path / "nothing")
    (tmp_path / "junk").write_text("no key")
    with pytest.raises(BundleError, match="did not sign"):
        signing.sign(b"x", tmp_path / "junk")
    with pytest.raises(BundleError, match="no file of allowed signers"):
        signing.verify(b"x", b"y", tmp_path / "nothing")


def test_errors_are_of_one_tree() -> None:
    assert issubclass(BundleError, RompatchError)
