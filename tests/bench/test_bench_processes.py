"""Several processes on one run, and one that is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bench_records import QUICK

from rompatch.bench.claims import claimed
from rompatch.errors import ConflictError
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store, open_store

TESTS = Path(__file__).parents[1]

SLOWLY = """
import sys, time
from bench_records import QUICK
from rompatch.compute.contexts import sample_contexts
from rompatch.store.ledger import Ledger
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import open_store
sample_contexts.__defaults__ = (((2, 2),),)
keep, kept = Ledger.add_bench_result, []

def slowly(self, run_id, result):
    keep(self, run_id, result)
    print("kept", flush=True)
    kept.append(result)
    time.sleep(60 if len(kept) == 2 else 0)
    return True

Ledger.add_bench_result = slowly
with open_store(sys.argv[1]) as store:
    store.bench("counterfact", sys.argv[2], spec=BaseSpec(sys.argv[3]), shard=sys.argv[4], **QUICK)
"""


def start(store: Store, records: Path, spec: BaseSpec, shard: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(store.root), str(records), spec.model, shard],
        text=True,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_run_blocks_nobody_loses_nothing_and_goes_on(store: Store, spec: BaseSpec, records: Path) -> None:
    given = {**QUICK, "spec": spec}
    running = start(store, records, spec, "1/2")
    try:
        assert running.stdout is not None
        for _ in range(2):
            assert running.stdout.readline() == "kept\n"
        (run,) = store.bench_runs()
        assert (run.scored, run.failed) == (2, 0)
        with pytest.raises(ConflictError, match="Another process is at work") as caught:
            store.bench("counterfact", records, **given)
        assert "--shard" in str(caught.value.next_step)
        with pytest.raises(ConflictError, match="Another process"):
            store.remove_bench(run.id)
        assert store.bench("counterfact", records, shard="2/2", **given).scored == 3  # side by side
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate()
    done = store.bench("counterfact", records, **given)
    assert (done.run.id, done.resumed, done.scored) == (run.id, 5, 1)
    results = store.bench_results(run.id)
    assert [result.position for result in results] == list(range(6))
    with open_store(store.root.parent / "other" / ".rompatch") as other:
        whole = other.bench("counterfact", records, **given)
        assert whole.run.id == run.id
        for mine, theirs in zip(results, other.bench_results(run.id), strict=True):
            assert mine.request == theirs.request
            assert mine.measures["after"] == pytest.approx(theirs.measures["after"], abs=1e-4)


CLAIM = """
import sys
from pathlib import Path
from rompatch.bench.claims import claimed
with claimed(Path(sys.argv[1]), "ab" * 32, eval(sys.argv[2])):
    print("claimed", flush=True)
    sys.stdin.readline()
"""


def test_claims_of_shards_do_not_meet_and_end_with_their_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path), "range(0, 100, 2)"],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with claimed(tmp_path, "ab" * 32, range(1, 100, 2)):
            pass
        with claimed(tmp_path, "cd" * 32):
            pass
        for places in ([4], range(99, 200), None, range(50)):
            if places == range(99, 200):
                with claimed(tmp_path, "ab" * 32, places):
                    continue
            with pytest.raises(ConflictError), claimed(tmp_path, "ab" * 32, places):
                pass
    finally:
        holder.kill()
        holder.communicate()
    with claimed(tmp_path, "ab" * 32):
        pass
