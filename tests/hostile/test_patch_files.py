"""Patch files nobody should trust: each is refused with a PatchFileError that names the file and what is wrong."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_patches import tiny_adapter, tiny_factors, tiny_patch

from rompatch import patchfile
from rompatch.errors import OutputError, PatchFileError
from rompatch.patch import Patch, canonical_json

DATA = patchfile.to_bytes(tiny_patch(layers=(1, 2)))
LENGTH = int.from_bytes(DATA[:8], "little")
BODY = DATA[8 + LENGTH :]


def container() -> dict[str, Any]:
    return dict(json.loads(DATA[8 : 8 + LENGTH]))


def pack(header: str | bytes, body: bytes = BODY) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + body


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def with_container(change: Callable[[dict[str, Any]], Any], body: bytes = BODY) -> bytes:
    entries = container()
    change(entries)
    return pack(compact(entries), body)


def with_metadata(change: Callable[[dict[str, Any]], Any], spell: Callable[[Any], str] = canonical_json) -> bytes:
    entries = container()
    metadata = json.loads(entries["__metadata__"]["rompatch"])
    change(metadata)
    entries["__metadata__"]["rompatch"] = spell(metadata)
    return pack(compact(entries))


def with_text(old: str, new: str) -> bytes:
    text = DATA[8 : 8 + LENGTH].decode()
    assert old in text
    return pack(text.replace(old, new, 1).rstrip(" "))


def with_number(value: float) -> bytes:
    return DATA[:-4] + np.array([value], dtype="<f4").tobytes()


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def test_the_helpers_leave_a_good_file_good() -> None:
    assert with_container(lambda entries: None) == DATA
    assert with_metadata(lambda metadata: None) == DATA


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "text": (b"#!/bin/sh\nrm -rf everything\n" * 9, "absurdly long"),
    "pickle": (b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n", "truncated inside"),
    "header length of 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", "absurdly long"),
    "header longer than the file": ((100).to_bytes(8, "little") + b"{}", "truncated inside its header"),
    "header of no bytes": (b"\0" * 8, "not JSON"),
    "header not UTF-8": (pack(b'{"\xff\xfe":1}'), "not UTF-8"),
    "header a list": (pack("[1,2]"), "not a JSON object"),
    "header nested 100 000 deep": (pack("[" * 100_000), "not JSON"),
    "a tensor named twice": (
        with_text('"site.0.u":', '"site.0.u":{"dtype":"F32","shape":[1,3],"data_offsets":[0,12]},"site.0.u":'),
        "occurs twice",
    ),
    "no metadata": (with_container(lambda e: e.pop("__metadata__")), "not a patch"),
    "foreign metadata": (with_container(lambda e: e.update(__metadata__={"format": "pt"})), "not a patch"),
    "second metadata key": (with_container(lambda e: e["__metadata__"].update(extra="x")), "not a patch"),
    "metadata no text": (with_container(lambda e: e.update(__metadata__={"rompatch": 7})), "not a patch"),
    "metadata no JSON": (with_container(lambda e: e.update(__metadata__={"rompatch": "{"})), "not JSON"),
    "metadata key twice": (with_text('\\"seed\\":0', '\\"seed\\":0,\\"seed\\":0'), "occurs twice"),
    "metadata with spaces": (with_metadata(lambda m: None, json.dumps), "canonical spelling"),
    "metadata with NaN": (with_text('\\"lr\\":0.5', '\\"lr\\":NaN'), "contains NaN"),
    "metadata with infinity by overflow": (with_text('\\"lr\\":0.5', '\\"lr\\":1e999'), "not plain JSON"),
    "metadata with half a surrogate pair": (with_text("fine", "\\\\ud800"), "not plain JSON"),
    "integer of 60 digits": (with_metadata(lambda m: m.update(seed=10**60)), "64 bits"),
    "integer of 6000 digits": (with_text('\\"seed\\":0', '\\"seed\\":' + "9" * 6000), "cannot be used"),
    "deep hyper-parameters": (with_metadata(lambda m: m["hparams"].update(x=deep(100))), "nested"),
    "long text": (with_metadata(lambda m: m["contexts"].append("x" * 100_000)), "too long"),
    "unknown field": (with_metadata(lambda m: m.update(surprise=1)), "unknown fields"),
    "missing field": (with_metadata(lambda m: m.pop("sites")), "no field 'sites'"),
    "unknown field of a site": (with_metadata(lambda m: m["sites"][0].update(x=1)), "does not describe"),
    "no sites": (with_metadata(lambda m: m.update(sites=[])), "number of sites"),
    "5000 sites": (with_metadata(lambda m: m.update(sites=m["sites"] * 2500)), "number of sites"),
    "same site twice": (with_metadata(lambda m: m.update(sites=m["sites"][:1] * 2)), "same parameter"),
    "sites an object": (with_metadata(lambda m: m.update(sites={"a": 1})), "does not describe"),
    "request a text": (with_metadata(lambda m: m.update(request="Rome")), "does not describe"),
    "template without a place": (with_metadata(lambda m: m["request"].update(template="x")), "exactly one {}"),
    "d_in of text": (with_metadata(lambda m: m["sites"][0].update(d_in="3")), "wrong type"),
    "d_in negative": (with_metadata(lambda m: m["sites"][0].update(d_in=-3)), "absurd"),
    "d_in of 2^40": (with_metadata(lambda m: m["sites"][0].update(d_in=2**40)), "absurd"),
    "layer a boolean": (with_metadata(lambda m: m["sites"][0].update(layer=True)), "wrong type"),
    "site hash a path": (with_metadata(lambda m: m["sites"][0].update(sha256="../../etc")), "64 lower-case hex"),
    "seed a text": (with_metadata(lambda m: m.update(seed="0")), "canonical spelling"),
    "ridge a text": (with_metadata(lambda m: m["statistics"].update(ridge="a")), "ridge"),
    "version 0": (with_metadata(lambda m: m.update(format_version=0)), "format version is unknown"),
    "missing tensor": (with_container(lambda e: e.pop("site.1.v")), "missing"),
    "unknown tensor": (with_container(lambda e: e.update({"site.2.u": e["site.1.u"]})), "no site explains"),
    "dtype float16": (with_container(lambda e: e["site.0.u"].update(dtype="F16")), "wrong dtype"),
    "dtype a list": (with_container(lambda e: e["site.0.u"].update(dtype=[])), "wrong dtype"),
    "shape transposed": (with_container(lambda e: e["site.0.key"].update(shape=[3, 1])), "wrong shape"),
    "u of one dimension": (with_container(lambda e: e["site.0.u"].update(shape=[3])), "site.0.u has the wrong shape"),
    "u of two rows, one key": (with_container(lambda e: e["site.0.u"].update(shape=[2, 3])), "site.0.u has the wrong"),
    "value of two rows, one key": (with_container(lambda e: e["site.0.value"].update(shape=[2, 2])), "wrong shape"),
    "base_out of no rows": (with_container(lambda e: e["site.0.base_out"].update(shape=[0, 2])), "wrong shape"),
    "shape negative": (with_container(lambda e: e["site.0.key"].update(shape=[-1, 3])), "whole numbers"),
    "shape of booleans": (with_container(lambda e: e["site.0.u"].update(shape=[True])), "whole numbers"),
    "shape empty": (with_container(lambda e: e["site.0.key"].update(shape=[])), "number of keys"),
    "no keys": (with_container(lambda e: e["site.0.key"].update(shape=[0, 3])), "number of keys"),
    "2^40 keys": (with_container(lambda e: e["site.0.key"].update(shape=[2**40, 3])), "number of keys"),
    "offsets beyond the end": (with_container(lambda e: e["site.1.v"].update(data_offsets=[0, 9999])), "outside"),
    "offsets reversed": (with_container(lambda e: e["site.1.v"].update(data_offsets=[8, 0])), "outside"),
    "three offsets": (with_container(lambda e: e["site.1.v"].update(data_offsets=[0, 8, 9])), "two offsets"),
    "offsets overlapping": (
        with_container(lambda e: e["site.1.v"].update(data_offsets=e["site.0.v"]["data_offsets"])),
        "canonical spelling",
    ),
    "entry with more fields": (with_container(lambda e: e["site.0.u"].update(x=1)), "malformed"),
    "entry a number": (with_container(lambda e: e.update({"site.0.u": 5})), "malformed"),
    "trailing bytes": (DATA + b"\0", "length does not fit"),
    "truncated by one": (DATA[:-1], "truncated"),
    "padding of tabs": (DATA[:8] + DATA[8 : 8 + LENGTH].rstrip(b" ") + b"\t" * 8 + BODY, "cannot be used"),
    "a fact said to be an adapter": (with_metadata(lambda m: m.update(format_version=2)), "one of format 2 has none"),
    "a fact with a title": (with_metadata(lambda m: m.update(title="x")), "format 1 or 3 has a request"),
    "a title in place of the request": (
        with_metadata(lambda m: (m.pop("request"), m.update(title="x"))),
        "format 1 or 3 has a request",
    ),
    "an adapter with the tensors of a fact": (
        with_metadata(lambda m: (m.pop("request"), m.update(title="x", format_version=2))),
        "tensors are missing",
    ),
    "a title of white space": (
        with_metadata(lambda m: (m.pop("request"), m.update(title=" ", format_version=2))),
        "title is no text",
    ),
    "a title that is a number": (
        with_metadata(lambda m: (m.pop("request"), m.update(title=7, format_version=2))),
        "title is no text",
    ),
    "a fact said to be solved": (
        with_metadata(lambda m: m.update(format_version=3)),
        "statistics for each of its sites",
    ),
    "a fact with more statistics": (
        with_metadata(lambda m: m.update(more_statistics=[m["statistics"]])),
        "statistics for each of its sites",
    ),
    "a solved one with the tensors of a fact": (
        with_metadata(lambda m: m.update(format_version=3, more_statistics=[m["statistics"]])),
        "no site explains",
    ),
    "more statistics without statistics": (
        with_metadata(lambda m: m.update(format_version=3, more_statistics=[m["statistics"]], statistics=None)),
        "for each of its sites",
    ),
    "more statistics than sites": (
        with_metadata(lambda m: m.update(format_version=3, more_statistics=[m["statistics"]] * 2)),
        "for each of its sites",
    ),
    "more statistics an empty list": (with_metadata(lambda m: m.update(more_statistics=[])), "canonical spelling"),
    "more statistics a number": (with_metadata(lambda m: m.update(more_statistics=7)), "does not describe"),
    "more statistics with a text as ridge": (
        with_metadata(lambda m: m.update(format_version=3, more_statistics=[{**m["statistics"], "ridge": "a"}])),
        "more_statistics[0].ridge",
    ),
    "NaN": (with_number(float("nan")), "NaN or infinity"),
    "infinity": (with_number(float("-inf")), "NaN or infinity"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name_and_reason(name: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with pytest.raises(PatchFileError) as caught:
        patchfile.read(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert caught.value.next_step


def test_an_adapter_whose_rank_does_not_fit_is_refused() -> None:
    data = patchfile.to_bytes(tiny_adapter())
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    entries["site.0.right"]["shape"] = [3, 2]
    with pytest.raises(PatchFileError, match="wrong shape"):
        patchfile.from_bytes(pack(compact(entries), data[8 + length :]))


def test_an_adapter_with_the_factors_of_a_fact_is_not_written() -> None:
    mixed = Patch(tiny_adapter().header, tiny_patch().factors)
    with pytest.raises(PatchFileError):
        patchfile.to_bytes(mixed)
    with pytest.raises(PatchFileError):
        patchfile.to_bytes(Patch(tiny_patch().header, tiny_adapter().factors))


def test_a_newer_format_says_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "newer.safetensors"
    path.write_bytes(with_metadata(lambda m: m.update(format_version=4, something_new=True)))
    for reader in (patchfile.read, patchfile.read_header):
        with pytest.raises(PatchFileError, match="Upgrade rompatch"):
            reader(path)


def test_a_file_too_large_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PatchFileError, match="too large"):
        patchfile.read(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "link to nowhere"])
def test_what_is_not_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link to nowhere":
            path.symlink_to("nowhere")
    with pytest.raises(PatchFileError, match=r"thing cannot be"):
        patchfile.read(path)


def test_another_patch_than_expected_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    patchfile.write(tiny_patch(seed=1), path)
    with pytest.raises(PatchFileError) as caught:
        patchfile.verify(path, tiny_patch(seed=2).id)
    assert caught.value.expected == tiny_patch(seed=2).id
    assert caught.value.found == tiny_patch(seed=1).id


def test_the_header_alone_is_read_without_looking_at_the_numbers(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    path.write_bytes(with_number(float("nan")))
    assert patchfile.read_header(path).request.subject == "Eiffel Tower"


def broken(**arrays: Any) -> Patch:
    patch = tiny_patch()
    factors = copy.copy(patch.factors[0])
    for name, array in arrays.items():
        object.__setattr__(factors, name, array)
    return Patch(patch.header, (factors,))


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (broken(u=np.array([[1, np.nan, 2]], np.float32)), "NaN"),
        (broken(u=np.zeros(3, np.float32)), "shape of site.0.u"),
        (broken(u=np.zeros((2, 3), np.float32)), "shape of site.0.u"),
        (broken(key=np.zeros((2, 3), np.float32)), "shape of site.0.base_out"),
        (broken(value=np.zeros((2, 2), np.float32)), "shape of site.0.value"),
        (broken(v=np.array([1e300, 1.0])), "NaN or infinity"),
        (broken(v=np.zeros(3, np.float32)), "shape of site.0.v"),
        (broken(key=np.zeros((0, 3), np.float32)), "0 keys"),
        (Patch(tiny_patch().header, ()), "one set of factors"),
        (tiny_patch(hparams={"lr": float("inf")}), "not plain JSON"),
        (tiny_patch(hparams={1: 2}), "not text"),
        (tiny_patch(seed=2**70), "64 bits"),
        (tiny_patch(sites=()), "number of sites"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_patch_that_breaks_the_format_is_not_written(patch: Patch, reason: str, tmp_path: Path) -> None:
    with pytest.raises(PatchFileError, match=reason):
        patchfile.write(patch, tmp_path / "patch.safetensors")
    assert list(tmp_path.iterdir()) == []


FILL_DISK = """
import resource, sys
from pathlib import Path
from rompatch import patchfile
from rompatch.errors import OutputError
source, target = map(Path, sys.argv[1:])
patch = patchfile.read(source)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    patchfile.write(patch, target)
except OutputError as error:
    print(error)
"""


def test_running_out_of_space_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "out" / "target.safetensors"
    target.parent.mkdir()
    patchfile.write(tiny_patch(), source)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000
    done = subprocess.run([sys.executable, "-c", FILL_DISK, source, target], capture_output=True, text=True, check=True)
    assert os.strerror(errno.EFBIG) in done.stdout
    assert "ulimit -f" in done.stdout
    assert list(target.parent.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "patch.safetensors"
    patchfile.write(tiny_patch(), path)
    with pytest.raises(PatchFileError):
        patchfile.write(broken(u=np.array([[1, np.nan, 2]], np.float32)), path)
    assert patchfile.read(path) == tiny_patch()


@pytest.mark.parametrize("target", ["missing/patch.safetensors", "file/patch.safetensors", "x" * 300])
def test_an_impossible_target_is_an_output_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"Writing .* failed"):
        patchfile.write(tiny_patch(), tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "patch.safetensors").mkdir()
    with pytest.raises(OutputError):
        patchfile.write(tiny_patch(), tmp_path / "patch.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["patch.safetensors"]


def test_the_limit_on_keys_holds_both_ways() -> None:
    patch = tiny_patch()
    too_many = Patch(patch.header, (tiny_factors(patch.header.sites[0], 5000, 0),))
    with pytest.raises(PatchFileError, match="5000 keys"):
        patchfile.to_bytes(too_many)
