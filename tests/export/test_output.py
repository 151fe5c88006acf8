"""What an export writes to, killed at every instant: the old one, the new one or nothing is there, never a half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from crashing import deaths

from rompatch.export.output import new_file, new_folder
from rompatch.folders import sweep


def write_folder(out: Path) -> None:
    with new_folder(out, inside=None, force=True, ours=lambda _: True) as work:
        for name in ("one", "two"):
            (work / name).write_text("new")


def write_file(out: Path) -> None:
    with new_file(out, inside=None, force=True) as work:
        work.write_text("rompatch_export new")


def content(path: Path) -> object:
    """The text of a file, or of every file in a folder; None where there is nothing."""
    if path.is_dir():
        return {one.name: one.read_text() for one in path.iterdir()}
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("write", [write_folder, write_file])
@pytest.mark.parametrize("replaced", [False, True])
def test_an_export_killed_at_any_instant_leaves_no_half(write: object, replaced: bool, tmp_path: Path) -> None:
    assert callable(write)
    out, old = tmp_path / "adapter", None
    if replaced:
        write(out)
        for path in sorted(out.iterdir()) if out.is_dir() else [out]:
            path.write_text("rompatch_export old")
        old = content(out)
    write(tmp_path / "like")
    new = content(tmp_path / "like")
    n_away = 0
    for _ in deaths(lambda: write(out), tmp_path):
        found = content(out)
        n_away += found is None
        if replaced:
            sweep(out)
            assert content(out) in (old, new), "what had made room is back"
        else:
            assert found in (None, new)
    assert content(out) == new
    assert n_away <= 1 or not replaced
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    write(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "like"], "the next one removes the rest"
