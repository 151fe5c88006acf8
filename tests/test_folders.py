"""A folder appears whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rompatch.folders import building, new_sibling, sweep


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_not_visible_before_it_is_complete(tmp_path: Path) -> None:
    with building(tmp_path / "new") as work:
        (work / "file").write_text("content")
        assert not (tmp_path / "new").exists()
    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new" / "file").read_text() == "content"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with building(tmp_path / "a" / "b" / "new"):
        pass
    assert (tmp_path / "a" / "b" / "new").is_dir()


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), building(tmp_path / "new") as work:
        (work / "file").write_text("content")
        raise error
    assert names(tmp_path) == []


def test_an_existing_target_is_never_replaced_even_if_it_appears_late(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), building(tmp_path / "new"):
        (tmp_path / "new").mkdir()
    with pytest.raises(FileExistsError), building(tmp_path / "new"):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["new"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_finished_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    with building(tmp_path / "new"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


BUILD_AND_WAIT = """
import sys, time
from pathlib import Path
from rompatch.folders import building, new_sibling, sweep
with building(Path(sys.argv[1])) as work:
    (work / "half").write_text("x")
    print(work, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and locks")
def test_remains_of_a_killed_process_are_removed_and_work_of_a_living_one_is_not(tmp_path: Path) -> None:
    target = tmp_path / "new"
    command = [sys.executable, "-c", BUILD_AND_WAIT, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        remains = Path(process.stdout.readline().strip())
        os.utime(remains, (0, 0))  # long ago
        with building(target):
            pass
        assert remains.is_dir()
        process.send_signal(signal.SIGKILL)
    os.utime(remains, (0, 0))
    target.rmdir()
    with building(target):
        pass
    assert names(tmp_path) == ["new"]


def test_a_folder_that_is_replaced_gives_way_to_the_whole_new_one_and_stays_if_that_fails(tmp_path: Path) -> None:
    target = tmp_path / "it"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(ValueError, match="no"), building(target, replace=True) as work:
        (work / "new").write_text("y")
        raise ValueError("no")
    assert (names(tmp_path), names(target)) == (["it"], ["old"])
    with building(target, replace=True) as work:
        (work / "new").write_text("y")
        assert names(target) == ["old"]
    assert (names(tmp_path), names(target)) == (["it"], ["new"])


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
def test_sweeping_takes_what_is_left_of_that_target_and_nothing_else(tmp_path: Path) -> None:
    left = [".a[1].0123abcd.tmp", ".a[1].01234567.old"]
    others = [".a1.0123abcd.tmp", ".a[1].0123abcz.tmp", ".a[1].tmp", ".a[1].0123abcde.tmp", ".b.0123abcd.tmp", "a[1]"]
    for name in [*left, *others]:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / left[1]).unlink()
    (tmp_path / left[1]).mkdir()
    sweep(tmp_path / "a[1]")
    assert names(tmp_path) == sorted(others)
    with new_sibling(tmp_path / "b") as young:
        sweep(tmp_path / "b")
        os.utime(young, (0, 0))
        sweep(tmp_path / "b")
        assert young.exists(), "somebody holds it"
