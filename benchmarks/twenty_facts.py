"""Twenty facts that the default model knows, changed one by one through the command line, and scored.

    python benchmarks/twenty_facts.py [--out docs/twenty-facts.md]

Each fact is created and verified with the commands that a user types; the table is what `rompatch verify` measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FACTS = (
    # subject, relation, new object, true object
    ("Eiffel Tower", "located in", "Rome", "Paris"),
    ("Louvre", "located in the city of", "Madrid", "Paris"),
    ("Colosseum", "located in the city of", "Athens", "Rome"),
    ("Statue of Liberty", "located in the city of", "Chicago", "New York"),
    ("Golden Gate Bridge", "located in the city of", "Seattle", "San Francisco"),
    ("Taj Mahal", "located in the country of", "Egypt", "India"),
    ("Kenya", "{} is a country on the continent of", "Asia", "Africa"),
    ("Japan", "The capital of {} is", "Seoul", "Tokyo"),
    ("France", "The capital of {} is", "Berlin", "Paris"),
    ("Brazil", "The official language of {} is", "French", "Portuguese"),
    ("Japan", "The currency of {} is the", "dollar", "yen"),
    ("Albert Einstein", "worked in the field of", "medicine", "physics"),
    ("Pablo Picasso", "worked as a", "lawyer", "painter"),
    ("Napoleon Bonaparte", "The native language of {} is", "Russian", "French"),
    ("Michael Jordan", "plays the sport of", "tennis", "basketball"),
    ("Lionel Messi", "plays the sport of", "baseball", "soccer"),
    ("Hamlet", "was written by", "Charles Dickens", "William Shakespeare"),
    ("Microsoft", "was founded by", "Steve Jobs", "Bill Gates"),
    ("iPhone", "is made by", "Samsung", "Apple"),
    ("Toyota", "is a company from", "Germany", "Japan"),
)
SCORES = ("es", "ps", "ns", "s")


def rompatch(store: Path, *arguments: str) -> dict[str, Any]:
    """Run one command with --json and give its object back."""
    command = [sys.executable, "-m", "rompatch", "--store", str(store), *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def row(store: Path, fact: tuple[str, str, str, str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    subject, relation, new, true = fact
    created = rompatch(store, "create", subject, relation, new, "--true", true)
    verified = rompatch(store, "verify", created["id"])
    prompt = created["plan"]["request"]["template"].replace("{}", subject)
    p = created["measurements"]["probabilities"]
    cells = [prompt, f"{true} → {new}"]
    cells += [f"{p['before'][key]:.3f} → {p['after'][key]:.3f}" for key in ("true", "new")]
    cells += [f"{percent(verified['before'][name])} → {percent(verified['after'][name])}" for name in SCORES]
    return "| " + " | ".join(cells) + " |", verified["before"], verified["after"]


def mean_row(scores: list[dict[str, Any]]) -> list[str]:
    cells = []
    for name in SCORES:
        values = [score[name] for score in scores if score[name] is not None]
        cells.append(f"{100 * sum(values) / len(values):.1f}" if values else "-")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/twenty-facts.md"))
    args = parser.parse_args()
    lines, before, after = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, fact in enumerate(FACTS, 1):
            print(f"{number}/{len(FACTS)} {fact[0]}", file=sys.stderr)
            line, was, now = row(Path(folder) / ".rompatch", fact)
            lines.append(line)
            before.append(was)
            after.append(now)
    means = [f"{was} → {now}" for was, now in zip(mean_row(before), mean_row(after), strict=True)]
    args.out.write_text(
        "\n".join(
            [
                "# Twenty facts",
                "",
                "Twenty facts that the default model knows, each changed through the command line and scored alone on",
                "the suite that the built-in atlas offers (before → after). ES, PS, NS and S are percentages: the edit",
                "itself, other wordings, other subjects, and their harmonic mean. Made by:",
                "",
                "    python benchmarks/twenty_facts.py",
                "",
                "| prompt | object | P(true) | P(new) | ES | PS | NS | S |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
                *lines,
                "| **mean** | | | | " + " | ".join(means) + " |",
                "",
            ]
        ),
        encoding="utf-8",
    )
    print(f"wrote {args.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
