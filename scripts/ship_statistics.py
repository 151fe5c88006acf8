"""Make the key statistics that come with the package: C of the default model at the layers that the docs edit.

    ROMPATCH_DATA=../shared/data python scripts/ship_statistics.py

Reads ``text/enwiki-96-articles.txt`` (English Wikipedia, CC BY-SA 3.0), counts tokens at every layer, and writes the
half-precision triangles of chol(C) to ``rompatch/compute/data/``. An interrupted run goes on where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rompatch.compute.statistics_files import StatisticsCache, write_packed
from rompatch.default_model import DEFAULT_MODEL
from rompatch.models import Base, load_base
from rompatch.reporting import Reporter
from rompatch.workflows.statistics import build_from_corpus, statistics_cache

TOKENS = {3: 400_000, 4: 400_000, 5: 200_000}
"""By layer: as many as the figures in the docs were measured with."""
TEXT = "text/enwiki-96-articles.txt"
FOLDER = Path(__file__).resolve().parents[1] / "rompatch" / "compute" / "data"


class Stderr(Reporter):
    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def step(self, phase: str, done: int, total: int) -> None:
        print(f"\r{phase} {done:,}/{total:,}", end="", file=sys.stderr)


def main() -> None:
    data = Path(os.environ.get("ROMPATCH_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    text = data / TEXT
    if not text.is_file():
        sys.exit(f"There is no {text}; set ROMPATCH_DATA to the data folder.")
    base = load_base(DEFAULT_MODEL)
    FOLDER.mkdir(exist_ok=True)
    for layer, tokens in TOKENS.items():
        ship(base, layer, tokens, str(text))


def ship(base: Base, layer: int, tokens: int, text: str) -> None:
    """Collect C of *layer* over *tokens* of *text*, or take it from the cache, and write its file.

    One that is there stays: to pack it again would round what is rounded already."""
    built = build_from_corpus(base, base.site(layer), text, tokens, Stderr())
    if built.shipped:
        return
    statistics = statistics_cache().load(built)
    provenance = {
        "text": "96 English Wikipedia articles",
        "licence": "CC BY-SA 3.0",
        "made_by": "scripts/ship_statistics.py",
        "model": DEFAULT_MODEL,
    }
    out = FOLDER / f"{DEFAULT_MODEL}-layer{layer}.safetensors"
    write_packed(statistics, out, provenance)
    shipped = next(file for file in StatisticsCache(FOLDER, FOLDER).files() if file.path == out)
    again = StatisticsCache(FOLDER).load(shipped).second_moment
    error = float((again - statistics.second_moment).norm() / statistics.second_moment.norm())
    print(f"\n{out.name}: {out.stat().st_size:,} bytes, {statistics.tokens:,} tokens, relative error {error:.1e}")


if __name__ == "__main__":
    main()
