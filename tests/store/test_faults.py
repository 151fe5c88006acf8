"""Other processes, kills, full disks and hostile files: the store stays consistent and says what to do."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from tiny_patches import record, tiny_patch

from rompatch.errors import RompatchError, SchemaError, StoreError
from rompatch.store import engine
from rompatch.store.blobs import Blobs
from rompatch.store.check import fsck, repair
from rompatch.store.ledger import Ledger
from rompatch.store.location import ledger_path

TESTS = Path(__file__).parents[1]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        cwd=TESTS.parent,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return out


PUSH = """
import sys
from tiny_patches import record, tiny_base, tiny_patch
from rompatch.store.ledger import Ledger
store, who = sys.argv[1], sys.argv[2]
with Ledger.open(store + "/ledger.db", create=True) as ledger:
    with ledger.transaction():
        if not ledger.stacks():
            ledger.create_stack("main", ledger.add_base(tiny_base()).id)
    for number in range(8):
        patch = tiny_patch(f"{who} {number}")
        with ledger.transaction():
            record(ledger, patch)
            ledger.push("main", [patch.id])
"""


def test_two_processes_create_and_push_without_losing_a_revision(tmp_path: Path) -> None:
    for process in [start(PUSH, tmp_path, who) for who in ("ada", "bob")]:
        finish(process)
    with Ledger.open(tmp_path) as ledger:
        assert len(ledger.members("main")) == 16
        revisions = ledger.revisions("main")[::-1]
        assert [item.number for item in revisions] == list(range(17))
        assert all(len(item.added) == 1 and not item.removed for item in revisions[1:])
        assert ledger.integrity_problems() == ()


WRITE_UNTIL_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from tiny_patches import tiny_patch
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
store, rounds = sys.argv[1], int(sys.argv[2])
random.seed(7)

def work(first):
    with Ledger.open(store) as ledger:
        blobs = Blobs(Path(store) / "patches")
        for number in range(first, first + 10_000):
            patch = tiny_patch(f"Subject {number}")
            path = blobs.put(patch)
            with ledger.transaction():
                ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
                if ledger.active_stack() is None:
                    ledger.create_stack("main", ledger.patch(patch.id).base_id)
                ledger.push("main", [patch.id])
            if number % 3 == 0:
                with ledger.transaction():
                    ledger.pop("main", [patch.id])
                    ledger.remove_patch(patch.id)
                blobs.remove(patch.id)
            os.write(ready[1], b".")

for number in range(rounds):
    ready = os.pipe()
    child = os.fork()
    if not child:
        work(number * 10_000)
        os._exit(1)
    os.close(ready[1])
    os.read(ready[0], 1)  # it is warm, and one patch is in
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""
ROUNDS = 10


def test_a_writer_killed_at_any_instant_leaves_a_consistent_store(store: Path, blobs: Blobs) -> None:
    finish(start(WRITE_UNTIL_KILLED, store, ROUNDS))
    for path in blobs.temporaries():
        os.utime(path, (0, 0))  # as if a minute had passed
    with Ledger.open(store) as ledger:
        findings = fsck(ledger, blobs)
        assert {finding.kind for finding in findings} <= {"orphan", "removed", "temporary"}
        assert len(findings) <= ROUNDS  # at most one a kill
        assert len(ledger.patches()) >= ROUNDS // 2
        repair(ledger, blobs, findings)
        assert fsck(ledger, blobs) == []
        members = ledger.members("main")
        assert all(blobs.get(patch.id).id == patch.id for patch in members)
        numbers = [item.number for item in ledger.revisions("main")]
        assert numbers == list(range(len(numbers)))[::-1]


FILL_DISK = """
import resource, sys
from tiny_patches import record, tiny_patch
from rompatch.errors import RompatchError
from rompatch.store.ledger import Ledger
ledger = Ledger.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000))
for number in range(1000):
    try:
        with ledger.transaction():
            patch = tiny_patch(f"Subject {number}", contexts=("x" * 20_000,))
            record(ledger, patch)
            record(ledger, tiny_patch(f"Twin {number}"))
    except RompatchError as error:
        print(type(error).__name__, error)
        break
"""


def test_a_full_disk_is_one_clear_error_and_nothing_is_half_written(store: Path) -> None:
    out = finish(start(FILL_DISK, store))
    assert out.startswith("StoreError")
    assert "disk" in out
    with Ledger.open(store) as ledger:
        assert ledger.integrity_problems() == ()
        subjects = {patch.subject for patch in ledger.patches()}
        written = {name.split()[1] for name in subjects}
        assert subjects == {f"{kind} {number}" for kind in ("Subject", "Twin") for number in written}


def test_a_lock_that_is_never_released_is_one_clear_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    with Ledger.open(store) as ledger, closing(sqlite3.connect(ledger_path(store))) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ledger.patches() == ()  # readers are not kept waiting
        with pytest.raises(StoreError, match=r"writing to it for too long.*Wait for it"):
            record(ledger, tiny_patch())
        other.rollback()
        assert record(ledger, tiny_patch()).id == tiny_patch().id


@pytest.mark.parametrize("data", [b"hello", b"SQLite format 3\0" + b"\xff" * 5000, b"SQLite format 3\0", b"\0" * 4096])
def test_a_file_that_is_no_database_is_a_store_error_and_is_kept(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(data)
    with pytest.raises(StoreError):
        Ledger.open(path, create=True)
    assert path.read_bytes() == data


def test_another_programs_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="not a rompatch ledger"):
        Ledger.open(path, create=True)
    assert path.read_bytes() == before


def test_random_damage_to_the_database_never_escapes_as_another_error(store: Path) -> None:
    with Ledger.open(store) as ledger:
        ledger.create_stack("main", record(ledger, tiny_patch()).base_id)
        ledger.push("main", [tiny_patch().id])
    whole = ledger_path(store).read_bytes()
    chance = random.Random(3)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        ledger_path(store).write_bytes(damaged)
        try:
            with Ledger.open(store) as ledger:
                fsck(ledger, Blobs(store / "patches"))
                ledger.history()
                ledger.resolve("Eiffel Tower")
                ledger.bases()
        except RompatchError:
            pass
        for suffix in ("-wal", "-shm"):
            ledger_path(store).with_name(f"ledger.db{suffix}").unlink(missing_ok=True)


def test_a_missing_ledger_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="rompatch create"):
        Ledger.open(tmp_path / "ledger.db")
    with pytest.raises(StoreError, match="There is no ledger"):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}")
    with pytest.raises(StoreError, match="cannot be opened"):
        Ledger.open(tmp_path / "no" / "such" / "ledger.db", create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["://", "nosuchdb://host/name", "sqlite+nodriver:///x"])
def test_a_url_of_nothing_known_is_a_store_error(url: str) -> None:
    with pytest.raises(StoreError):
        Ledger.open(url)


def test_a_ledger_opens_by_url_too(store: Path) -> None:
    with Ledger.open(f"sqlite:///{ledger_path(store)}") as ledger:
        assert ledger.patches() == ()


def test_a_read_only_ledger_can_be_read_but_not_written(store: Path) -> None:
    uri = f"sqlite:///file:{ledger_path(store)}?mode=ro&uri=true"
    with Ledger.open(store) as ledger:
        record(ledger, tiny_patch())
        with Ledger.open(uri, create=True) as reader:
            assert len(reader.patches()) == 1
            with pytest.raises(StoreError, match="read-only"):
                reader.set_setting("x", 1)
