"""Seconds that the ledger's commands take in a large store, beyond the start of the interpreter, in one run.

    python benchmarks/ledger.py [--patches N] [--stack M] [--repeat R] [--store DIR] [--json FILE]

A store of N patches is made (100,000), with a stack of M (1,000) that came to be one patch a revision. Every command
runs as a process of its own, R times, in turns with `rompatch --version`, which imports the program and does nothing.
"beyond" is the least time of the command less that of `--version`; "cpu" is the same of processor time, which other
programs on the machine disturb less. The patches have the size of the default model's
(576 x 1536, two keys) and random numbers; those that are applied, reverted or checked out have their files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from rompatch.edits import EditRequest
from rompatch.patch import BaseRef, Patch, PatchHeader, SiteFactors, SiteRef, canonical_json
from rompatch.store import schema
from rompatch.store.lookup import subject_key
from rompatch.store.patches import now
from rompatch.workflows.store import Store, open_store

D_OUT, D_IN, N_KEYS = 576, 1536, 2
WITH_FILES = 12
GOAL = 0.2
"""Seconds."""


def sha(text: str) -> str:
    """64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


SITE = SiteRef(4, "model.layers.4.mlp.down_proj.weight", D_OUT, D_IN, False, "float32", sha("site"))
BASE = BaseRef("generated", "llama", sha("config"), sha("tokenizer"), "float32")


def header(subject: str, target: str) -> PatchHeader:
    """A header of usual size."""
    return PatchHeader(
        method="rome",
        hparams={"lr": 0.5, "steps": 25, "clamp_norm_factor": 4.0, "kl_factor": 0.0625, "weight_decay": 0.5},
        request=EditRequest(subject, "The {} is located in", target, "Paris", "located in"),
        base=BASE,
        sites=(SITE,),
        contexts=("{}", *(f"The weather was fine on day {number} of the long journey. {{}}" for number in range(20))),
        seed=0,
        document_start=True,
        statistics=None,
        versions={"rompatch": "0.1.0", "torch": "2.13.0", "transformers": "4.57.1"},
    )


def real_patch(number: int) -> Patch:
    """A patch with numbers in it."""
    draw = np.random.default_rng(number)

    def numbers(*shape: int) -> Any:
        return draw.standard_normal(shape, dtype=np.float32)

    factors = SiteFactors(
        u=numbers(N_KEYS, D_IN),
        v=numbers(D_OUT),
        key=numbers(N_KEYS, D_IN),
        value=numbers(N_KEYS, D_OUT),
        base_out=numbers(N_KEYS, D_OUT),
    )
    return Patch(header(f"Tower of the town {number}", "Rome"), (factors,))


def fill(store: Store, n_patches: int, n_stack: int) -> list[str]:
    """Rows for *n_patches*, a stack of *n_stack*, and files for some; the ids of those with files, not on the stack."""
    ids = []
    with store.ledger.transaction() as ledger:
        for number in range(WITH_FILES):
            patch = real_patch(number)
            size = store.blobs.put(patch).stat().st_size
            ids.append(ledger.add_patch(patch.header, patch_id=patch.id, file_size=size).id)
        base = ledger.bases()[0].id
        rest = [sha(f"patch {number}") for number in range(n_patches - WITH_FILES)]
        for start in range(0, len(rest), 5000):
            _insert(store, rest[start : start + 5000], base, start)
        ledger.create_stack("main", base)
        for patch_id in rest[:: max(1, len(rest) // n_stack)][: n_stack - 1]:
            ledger.push("main", [patch_id])
        ledger.push("main", ids[:1])
    return ids[1:]


def _insert(store: Store, ids: list[str], base: str, first: int) -> None:
    patches, sites = [], []
    for number, patch_id in enumerate(ids, first):
        head = header(f"Place {number}", ("Rome", "Oslo", "Lima")[number % 3])
        request = head.request
        assert request is not None
        row = {"id": patch_id, "base_id": base, **request.to_json(), "method": "rome", "file_size": 38720}
        row |= {"subject_key": subject_key(request.subject), "header": canonical_json(head.to_json())}
        patches.append(row | {"created_at": now(), "author": "ada", "measurements": "{}"})
        site = {"patch_id": patch_id, "n": 0, "layer": 4, "parameter": SITE.parameter}
        sketch = np.random.default_rng(number).standard_normal(64).astype("<f2").tobytes()
        sites.append(site | {"shape": f"{D_OUT}x{D_IN}", "tensor_sha256": SITE.sha256, "key_sketch": sketch})
    with store.ledger.session.writing() as connection:
        connection.execute(insert(schema.patches), patches)
        connection.execute(insert(schema.sites), sites)


def seconds(store: Path, *arguments: str) -> tuple[float, float]:
    """Wall and processor time of one command."""
    command = [sys.executable, "-m", "rompatch", *arguments, "--store", str(store)]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    spent, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, used


def commands(one: str, subject: str) -> list[tuple[str, tuple[str, ...]]]:
    """The commands of one round; what they change is as before at the end of it."""
    return [
        ("apply ID", ("apply", one)),
        ("revert ID", ("revert", one)),
        ("apply SUBJECT", ("apply", subject)),
        ("stack diff HEAD~500", ("stack", "diff", "HEAD~500")),
        ("stack checkout HEAD~1", ("stack", "checkout", "HEAD~1")),
        ("list", ("list",)),
        ("log", ("log",)),
        ("stack log", ("stack", "log")),
        ("status", ("status",)),
        ("history SUBJECT", ("history", subject)),
    ]


def main() -> None:
    """Make the store, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--stack", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--store", type=Path, help="Keep the store here, or take the one that is here.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.store or Path(scratch)) / ".rompatch"
        fresh = not folder.exists()
        with open_store(folder) as store:
            if fresh:
                fill(store, args.patches, args.stack)
            one = store.resolve("Tower of the town 1")
            about = [store.ledger.count_patches(), len(store.ledger.member_ids("main"))]
        times: dict[str, list[tuple[float, float]]] = {}
        for _ in range(args.repeat):
            times.setdefault("--version", []).append(seconds(folder, "--version"))
            for name, arguments in commands(one.id, one.subject):
                times.setdefault(name, []).append(seconds(folder, *arguments))
        ledger = (folder / "ledger.db").stat().st_size
    least = {name: tuple(map(min, zip(*spent, strict=True))) for name, spent in times.items()}
    start = least["--version"]
    print(f"{about[0]:,} patches, a stack of {about[1]:,}, a ledger of {ledger / 1e6:.0f} MB; goal {GOAL} s beyond")
    print(f"{'command':24} {'seconds':>8} {'beyond':>8} {'cpu':>8}")
    for name, (wall, used) in least.items():
        print(f"{name:24} {wall:8.3f} {wall - start[0]:8.3f} {used - start[1]:8.3f}")
    if args.json:
        args.json.write_text(json.dumps({"patches": about[0], "stack": about[1], "seconds": times}, indent=2))


if __name__ == "__main__":
    main()
