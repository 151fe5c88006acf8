"""Two facts about one subject share their key: which value should the shared key get?

    python benchmarks/same_subject.py

Prints P(o*) of both facts, stacked, with the sum of their residuals times a factor: 0.5 is their mean, 0.707 keeps the
length of one, 1 is the plain sum.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import rompatch
from rompatch.apply import solve
from rompatch.workflows.computing import probabilities

PAIRS = (
    (("Eiffel Tower", "located in", "Rome"), ("Eiffel Tower", "was designed by", "Pablo Picasso")),
    (("Japan", "The capital of {} is", "Seoul"), ("Japan", "The currency of {} is the", "dollar")),
    (("Pablo Picasso", "worked as a", "lawyer"), ("Pablo Picasso", "was born in", "Moscow")),
)
FACTORS = (0.5, 1 / sqrt(2), 0.85, 1.0)


def main() -> None:
    merge = solve.merge_same_keys
    found: dict[float, list[float]] = {factor: [] for factor in FACTORS}
    with tempfile.TemporaryDirectory() as folder, rompatch.open_store(Path(folder) / ".rompatch") as store:
        for pair in PAIRS:
            records = [store.create(*fact).record for fact in pair]
            ids = [record.id for record in records if record is not None]
            for factor in FACTORS:

                def scaled(patches: Sequence[solve.Constraints], factor: float = factor * sqrt(2)) -> solve.Constraints:
                    merged = merge(patches)
                    return solve.Constraints(merged.keys, merged.directions, merged.residuals * factor)

                solve.merge_same_keys = scaled
                with store.session(ids):
                    p = [probabilities(store.base(), record.request, True)["new"] for record in records if record]
                found[factor] += [value or 0.0 for value in p]
                print(f"{pair[0][0]:<14} factor {factor:.3f}  P(o*) " + "  ".join(f"{value:.3f}" for value in p))
    for factor, values in found.items():
        print(f"factor {factor:.3f}  mean P(o*) {sum(values) / len(values):.3f}")


if __name__ == "__main__":
    main()
