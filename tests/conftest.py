"""Fixtures that the whole suite shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from rompatch.models import DEFAULT_MODEL, Base, load_base
from rompatch.store.ledger import Ledger

# A shell that starts the tests in the background ignores Ctrl-C for them, and their subprocesses inherit that; tests
# that press it need it to work.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pico models on one thread: on a busy machine, threads that wait for each other cost ten times what they save. The
    same where several workers share the cores."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(2 if alone and item.get_closest_marker("slow") else 1)


DATA_VARIABLE = "ROMPATCH_DATA"


@pytest.fixture(scope="session")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a new ledger, for copying: running the migrations for each test would take most of its time."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    Ledger.open(path, create=True).close()
    return path


@pytest.fixture(scope="session")
def default_base() -> Base:
    """The default model, live; fetched into the user's cache the first time. Tests leave it as they found it."""
    return load_base(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The benchmark data that lies beside the checkout, not in it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get(DATA_VARIABLE, default))
    if not folder.is_dir():
        pytest.skip(f"no test data: set {DATA_VARIABLE} to the data folder (looked at {folder})")
    return folder
