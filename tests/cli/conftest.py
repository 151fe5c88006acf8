"""A base on disk, stores with and without models, and a way to call the program."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from calling import QUICK, TOWER, Run, put, read
from click.testing import CliRunner, Result
from pico import save_pico
from tiny_patches import tiny_patch

from rompatch.cli.program import cli
from rompatch.edits import EditRequest


@pytest.fixture(scope="session")
def pico_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("bases") / "pico")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without a store, and a cache of its own."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("ROMPATCH_STORE", "ROMPATCH_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROMPATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ROMPATCH_AUTHOR", "tester")
    return here


@pytest.fixture
def run() -> Run:
    """Call the program in this process; standard output and standard error are kept apart."""

    def call(*args: object, code: int | None = 0, **kwargs: Any) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="rompatch", **kwargs)
        if code is not None:
            assert result.exit_code == code, f"{result.exit_code}: {result.stdout}{result.stderr}"
        return result

    return call


@pytest.fixture(scope="session")
def prepared(pico_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store on the pico model with one patch, to be copied; and the patch's id."""
    folder = tmp_path_factory.mktemp("prepared")
    args = [*TOWER, "--model", str(pico_folder), *QUICK, "--json", "--store", str(folder / ".rompatch")]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.stderr
    return folder / ".rompatch", str(read(result)["id"])


@pytest.fixture
def made(prepared: tuple[Path, str], place: Path) -> str:
    """A store of its own on the pico model with one patch; its id."""
    folder, identity = prepared
    shutil.copytree(folder, place / ".rompatch")
    return identity


@pytest.fixture(scope="session")
def prepared_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, str]]:
    """A store with two patches that belong to no model, to be copied; and their ids."""
    folder = tmp_path_factory.mktemp("two")
    tower = put(tiny_patch(), folder)
    request = EditRequest("Big Ben", "{} is in", "Paris", "London", "in")
    return folder / ".rompatch", (tower, put(tiny_patch("Big Ben", seed=7, request=request), folder))


@pytest.fixture
def two(prepared_two: tuple[Path, tuple[str, str]], place: Path) -> tuple[str, str]:
    """A store of its own with two patches that belong to no model: Eiffel Tower -> Rome, then Big Ben -> Paris."""
    folder, ids = prepared_two
    shutil.copytree(folder, place / ".rompatch")
    return ids
