"""Seconds to score COUNTERFACT records before and after an edit: the plain way against the engine, in one run.

    python benchmarks/verification.py FILE [--limit N] [--batch N] [--repeat N] [--model SPEC] [--layer L]
        [--no-document-start] [--json FILE]

plain   a padded row for each prompt and object, whole passes, all logits; after: with the edit in the weights
engine  each record by itself
batched --batch records side by side

Each record gets a stand-in for a patch that has a ROME patch's form and size (key: the site's input at the subject's
last token; value: a random direction, as long as an optimisation allows), because computing patches takes longer than
scoring them and scoring time does not depend on what is in them. The three ways take turns on the same records.
Prints medians of seconds a record, their ratios to the plain way, and the largest difference of a log-probability.
"""

from __future__ import annotations

import argparse
import json
import statistics as stats
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rompatch.default_model import DEFAULT_MODEL
from rompatch.edits import EditRequest
from rompatch.hooks import capture_inputs, until_stopped
from rompatch.models import Base, load_base
from rompatch.sites import Site
from rompatch.tokens import encode_pair, encode_subject, pad, pad_id
from rompatch.verify.building import suite_from_counterfact
from rompatch.verify.evaluation import Evaluation, evaluate_batch
from rompatch.verify.reading import load_counterfact
from rompatch.verify.suite import Suite
from rompatch.verify.updates import SiteTerm

LENGTH = 4.0
"""Norm of the change at the subject, in norms of what the site gives there: the bound of ROME's optimisation."""


@dataclass(frozen=True, eq=False)
class Task:
    """One record: its suite and the edit v u^T."""

    suite: Suite
    left: Tensor
    right: Tensor


def stand_in(base: Base, site: Site, request: EditRequest, suite: Suite, start: bool, seed: int) -> Task:
    """The record's suite with a rank-one update as long as a ROME patch's."""
    where = request.template.index("{}")
    code = encode_subject(base.tokenizer, request.prompt, request.subject, where, start)
    with torch.inference_mode(), capture_inputs(site.module, stop=True) as seen, until_stopped():
        base.model(input_ids=torch.tensor([code.ids], device=base.input_device), use_cache=False)
    key = seen[0].reshape(-1, site.d_in)[code.subject_last].float().cpu()
    direction = torch.randn(site.d_out, generator=torch.Generator().manual_seed(seed))
    length = LENGTH * (site.matrix().float().cpu() @ key).norm()
    return Task(suite, (direction / direction.norm() * length)[:, None], (key / (key @ key))[None])


def plain_pass(base: Base, suite: Suite, start: bool) -> list[float]:
    """Mean log-probability of each object after each scored prompt, a padded row for each."""
    pairs = [
        encode_pair(base.tokenizer, prompt.text, target, start)
        for prompt in suite.prompts
        if prompt.kind != "generation"
        for target in (prompt.target_new, prompt.target_true)
        if target is not None
    ]
    rows = [[*pair.prompt_ids, *pair.target_ids] for pair in pairs]
    batch = pad(rows, pad_id(base.tokenizer), side="right", device=base.input_device)
    with torch.inference_mode():
        logits = base.model(**batch.to_kwargs(), use_cache=False).logits
        return [
            torch.log_softmax(logits[i, len(pair.prompt_ids) - 1 : len(row) - 1].float(), -1)
            .gather(1, torch.tensor(pair.target_ids, device=base.input_device)[:, None])
            .mean()
            .item()
            for i, (pair, row) in enumerate(zip(pairs, rows, strict=True))
        ]


def plain(base: Base, site: Site, task: Task, start: bool) -> tuple[list[float], list[float]]:
    """Before and after, the edit in the weights."""
    before, original = plain_pass(base, task.suite, start), site.weight.data
    update = (task.left @ task.right).to(original.device)
    try:
        site.weight.data = (original.float() + (update.T if site.transposed else update)).to(original.dtype)
        return before, plain_pass(base, task.suite, start)
    finally:
        site.weight.data = original


def engine(base: Base, site: Site, tasks: Sequence[Task], start: bool) -> list[tuple[list[float], list[float]]]:
    """The same through the engine, all *tasks* side by side."""
    edits = [[SiteTerm.of(site, task.left, task.right)] for task in tasks]
    suites = [task.suite for task in tasks]
    pairs = evaluate_batch(base.model, base.tokenizer, suites, edits, document_start=start)
    return [(_logprobs(before), _logprobs(after)) for before, after in pairs]


def _logprobs(evaluation: Evaluation) -> list[float]:
    found = ((result.new_logprob, result.true_logprob) for result in evaluation.results)
    return [value for pair in found for value in pair if value is not None]


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def difference(left: tuple[list[float], list[float]], right: tuple[list[float], list[float]]) -> float:
    """The largest between two scorings of one record."""
    pairs = [pair for one, other in zip(left, right, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def measure(base: Base, site: Site, tasks: Sequence[Task], start: bool, batch: int, repeat: int) -> dict[str, Any]:
    """Seconds a record of the three ways, taking turns batch by batch, and the largest difference."""
    seconds: dict[str, list[float]] = {"plain": [], "engine": [], "batched": []}
    largest = 0.0
    for begin in list(range(0, len(tasks), batch)) * repeat:
        some = tasks[begin : begin + batch]
        spent, together = timed(lambda some=some: engine(base, site, some, start))
        seconds["batched"] += [spent / len(some)] * len(some)
        for task, side_by_side in zip(some, together, strict=True):
            spent, expected = timed(lambda task=task: plain(base, site, task, start))
            seconds["plain"].append(spent)
            spent, alone = timed(lambda task=task: engine(base, site, [task], start))
            seconds["engine"].append(spent)
            largest = max(largest, difference(expected, alone[0]), difference(expected, side_by_side))
    median = {name: stats.median(values) for name, values in seconds.items()}
    ratios = {
        name: stats.median(one / other for one, other in zip(seconds["plain"], values, strict=True))
        for name, values in seconds.items()
    }
    return {"seconds": seconds, "median": median, "ratio": ratios, "largest_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--no-document-start", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base, start = load_base(args.model), not args.no_document_start
    site = base.site(base.preset_layer if args.layer is None else args.layer)
    records = load_counterfact(args.file)[: args.limit]
    tasks = [
        stand_in(base, site, record.request, suite_from_counterfact(record), start, number)
        for number, record in enumerate(records)
    ]
    engine(base, site, tasks[:1], start)  # tries out what the model can do, once for a live model
    plain(base, site, tasks[0], start)
    found = measure(base, site, tasks, start, args.batch, args.repeat)
    settings = {"records": len(tasks), "batch": args.batch, "layer": site.layer, "document_start": start}
    settings |= {"threads": torch.get_num_threads(), "dtype": base.dtype, "model": base.source}
    print("  ".join(f"{name} {value}" for name, value in settings.items()))
    for name, seconds in found["median"].items():
        print(f"{name:8} {seconds:8.3f} s a record   {found['ratio'][name]:6.2f} x plain")
    print(f"largest difference of a log-probability: {found['largest_difference']:.2e} nats")
    if args.json is not None:
        args.json.write_text(json.dumps({**settings, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
