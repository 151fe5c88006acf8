"""COUNTERFACT scores of single edits on the default model: the check that a change to the numerics must pass.

    python benchmarks/counterfact.py FILE [--limit N] [--model SPEC] [--layer L] [--seed N] [--steps N]
        [--key mixed|mean] [--no-document-start] [--statistics auto|none|ID]

Each record is edited alone, scored, and forgotten. Prints ES/PS/NS/S before and after, and the median seconds an edit.
"""

from __future__ import annotations

import argparse
import statistics as stats
import sys
import time
from pathlib import Path

from rompatch.apply.session import PatchedModel
from rompatch.compute.contexts import sample_contexts
from rompatch.compute.methods import METHODS
from rompatch.compute.methods.rome import RomeHparams
from rompatch.default_model import DEFAULT_MODEL
from rompatch.models import load_base
from rompatch.reporting import Reporter
from rompatch.verify.building import suite_from_counterfact
from rompatch.verify.evaluation import evaluate
from rompatch.verify.metrics import Scores, harmonic_mean
from rompatch.verify.reading import load_counterfact
from rompatch.workflows.statistics import statistics_for


def mean(scores: list[Scores]) -> str:
    def part(name: str) -> float | None:
        values = [value for one in scores if (value := getattr(one, name)) is not None]
        return sum(values) / len(values) if values else None

    names = ("es", "em", "ps", "pm", "ns", "nm")
    s = harmonic_mean([part("es"), part("ps"), part("ns")])
    return "  ".join(f"{n.upper()} {100 * (part(n) or 0):6.2f}" for n in names) + f"  S {100 * (s or 0):6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--key", default="mixed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--statistics", default="auto")
    parser.add_argument("--no-document-start", action="store_true")
    args = parser.parse_args()
    base = load_base(args.model)
    site = base.site(base.preset_layer if args.layer is None else args.layer)
    moment = statistics_for(base, site, args.statistics, args.seed, Reporter())
    contexts = sample_contexts(base.model, base.tokenizer, args.seed)
    start, before, after, seconds = not args.no_document_start, [], [], []
    records = load_counterfact(args.file)[: args.limit]
    for number, record in enumerate(records, 1):
        suite = suite_from_counterfact(record)
        began = time.perf_counter()
        patch = (
            METHODS["rome"]
            .compute(
                base,
                record.request,
                site=site,
                contexts=contexts,
                statistics=moment,
                hparams=RomeHparams(keys=args.key, steps=args.steps),
                document_start=start,
            )
            .patch
        )
        seconds.append(time.perf_counter() - began)
        with PatchedModel(base) as patched:
            before.append(evaluate(patched.model, base.tokenizer, suite, document_start=start).scores)
            patched.activate([patch])
            after.append(evaluate(patched.model, base.tokenizer, suite, document_start=start).scores)
        print(f"\r{number}/{len(records)}  {mean(after)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    corpus = "none" if moment is None else f"{moment.key.corpus}, {moment.tokens:,} tokens"
    print(f"{len(records)} records, layer {site.layer}, document start {start}, {args.key} keys, C: {corpus}")
    print(f"before  {mean(before)}")
    print(f"after   {mean(after)}")
    print(f"seconds an edit: median {stats.median(seconds):.2f}")


if __name__ == "__main__":
    main()
