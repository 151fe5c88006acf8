"""Edits a minute of `create --file` against as many single creates, in one process and on one loaded base.

    ROMPATCH_DATA=... python benchmarks/batch_create.py [--facts 32] [--model SPEC]

The facts are COUNTERFACT records of `$ROMPATCH_DATA/counterfact/counterfact-extra-204.json`. The base is loaded and the
statistics are in memory before either is timed, so the ratio is that of computing together, not of loading less often:
a shell that calls `create` for each fact loads the base each time on top of it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import rompatch
from rompatch.verify.reading import load_counterfact
from rompatch.workflows.store import Store

FILE = "counterfact/counterfact-extra-204.json"


def facts(count: int) -> list[dict[str, str | None]]:
    """The first records, as lines of a file of facts."""
    requests = [record.request for record in load_counterfact(Path(os.environ["ROMPATCH_DATA"]) / FILE)[:count]]
    return [
        {"subject": one.subject, "relation": one.template, "object": one.target_new, "true": one.target_true}
        for one in requests
    ]


def seconds_alone(store: Store, lines: list[dict[str, str | None]]) -> float:
    """Wall seconds of one create after the other."""
    start = time.perf_counter()
    for line in lines:
        store.create(str(line["subject"]), str(line["relation"]), str(line["object"]), true=line["true"], again=True)
    return time.perf_counter() - start


def seconds_together(store: Store, lines: list[dict[str, str | None]]) -> float:
    """Wall seconds of a create_many."""
    start = time.perf_counter()
    store.create_many(lines, again=True).check()
    return time.perf_counter() - start


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--model", help="a base, instead of the default model")
    given = parser.parse_args()
    lines = facts(given.facts)
    with tempfile.TemporaryDirectory() as folder, rompatch.open_store(Path(folder) / ".rompatch") as store:
        if given.model:
            store.use(given.model)
        seconds_alone(store, lines[:1])  # loads the base, and tries out what the machine can do
        alone, together = seconds_alone(store, lines), seconds_together(store, lines)
    for name, seconds in (("one by one", alone), ("together", together)):
        print(f"{name:<11} {len(lines)} facts in {seconds:6.1f} s  {60 * len(lines) / seconds:6.1f} edits a minute")
    print(f"ratio       {alone / together:.2f}")


if __name__ == "__main__":
    main()
