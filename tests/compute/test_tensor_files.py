"""Large tensors on the disk: whole or not at all, readable as any file, and nothing of a killed process for long."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rompatch.compute.tensor_files import write_tensors
from rompatch.errors import OutputError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "none": torch.empty(0, 3)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_tensors(path, TENSORS, {"k": "v"})
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata() == {"k": "v"}
        assert all(torch.equal(handle.get_tensor(name), tensor) for name, tensor in TENSORS.items())
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_its_mode_is_the_umasks(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "file", TENSORS, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_folder_that_is_a_file_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="ROMPATCH_CACHE"):
        write_tensors(tmp_path / "file" / "inside", TENSORS, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_that_is_a_folder_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_tensors(tmp_path / "file", TENSORS, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, young, other = (tmp_path / f".{name}.tmp" for name in ("file.01234567", "file.89abcdef", "more.01234567"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "part").write_bytes(b"half")
    for entry in (old / "part", old, other / "part", other):
        os.utime(entry, (time.time() - 7200,) * 2)
    write_tensors(tmp_path / "file", TENSORS, {})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([young.name, other.name, "file"])
