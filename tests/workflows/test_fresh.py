"""A new store goes again with the create that failed, unless somebody else has come to use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from heard import Heard
from tiny_patches import record, tiny_patch

import rompatch
from rompatch.errors import StoreError
from rompatch.store.ledger import Ledger
from rompatch.workflows.fresh import discarded_unless_used
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

OPEN_AND_CHOOSE = """
import sys
from pathlib import Path
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import open_store
with open_store(Path(sys.argv[1])) as store:
    print("open", flush=True)
    sys.stdin.readline()
    store.remember_base(BaseSpec("a-model"))
"""


def fails_in(store: Store, error: type[BaseException] = KeyboardInterrupt) -> None:
    with pytest.raises(error), store, discarded_unless_used(store, new=True):
        raise error("no")


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoreError])
def test_a_failure_in_a_new_store_leaves_nothing(tmp_path: Path, heard: Heard, error: type[BaseException]) -> None:
    fails_in(open_store(tmp_path / ".rompatch", reporter=heard), error)
    assert list(tmp_path.iterdir()) == []
    assert heard.notes[-1].endswith("is gone again")


def test_a_new_store_without_its_folder_of_patches_goes_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / ".rompatch")
    (store.root / "patches").rmdir()
    fails_in(store)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_another_process_has_open_stays_and_works(tmp_path: Path, heard: Heard) -> None:
    root = tmp_path / ".rompatch"
    store = open_store(root, reporter=heard)
    command = [sys.executable, "-c", OPEN_AND_CHOOSE, str(root)]
    environment = os.environ | {"PYTHONPATH": str(Path(rompatch.__file__).parents[1])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        fails_in(store)
        assert "another program uses it" in heard.notes[-1]
        other.communicate("go on\n", timeout=60)
    assert other.returncode == 0
    with open_store(root, create=False) as again:
        assert again.base_spec().model == "a-model"
        assert again.ledger.integrity_problems() == ()


def test_a_store_in_which_another_process_chose_a_base_or_removed_a_patch_stays(tmp_path: Path) -> None:
    for name in ("chose", "removed"):
        store = open_store(tmp_path / name)
        with open_store(tmp_path / name) as other:
            if name == "chose":
                other.remember_base(BaseSpec("a-model"))
            else:
                record(other.ledger, tiny_patch())
                other.ledger.remove_patch(tiny_patch().id)
        fails_in(store)
        open_store(tmp_path / name, create=False).close()


def test_a_ledger_that_is_not_discarded_after_all_lets_others_in_again(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
        assert not ledger.discard(lambda: False)
        with Ledger.open(tmp_path / "ledger.db") as other:
            record(other, tiny_patch())
            assert not ledger.discard(lambda: True), "the other one has it open"
            with other.session.reading() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert [patch.id for patch in ledger.patches()] == [tiny_patch().id]


def test_nobody_gets_hold_of_a_ledger_that_is_being_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.store.engine.BUSY_SECONDS", 0)

    def refused() -> bool:
        with pytest.raises(StoreError, match="locked"):
            Ledger.open(tmp_path / "ledger.db")
        return True

    assert Ledger.open(tmp_path / "ledger.db", create=True).discard(refused)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_was_deleted_while_it_was_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    Ledger.open(path, create=True).close()
    monkeypatch.setattr("rompatch.store.ledger.ensure_current", lambda _session: path.unlink())
    with pytest.raises(StoreError, match=r"deleted the new ledger.*Try again"):
        Ledger.open(path)
