"""Where the time of an edit goes: replay against the plain loop, the floor, batches, and how the cost grows.

    python benchmarks/speed.py [--model SPEC] [--records FILE] [--json FILE] [--plot FILE.svg] [PART ...]

Parts: edit, batch, growth; all of them by default. Everything is a ratio within one run: the sides take turns, and the
middle of their times counts. FILE is in COUNTERFACT's format; without one, requests are made from the built-in atlas.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from naive import NaiveLoop
from transformers import LlamaConfig, LlamaForCausalLM

from rompatch.compute.contexts import sample_contexts
from rompatch.compute.cost import EditCost, naive_cost, replay_cost, shape_of
from rompatch.compute.gather import encode_contexts, gather_keys
from rompatch.compute.methods.rome import compute_many, value_contexts
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.replaying import can_replay, make_replayer
from rompatch.compute.rows import RowBatch, ValueRows, value_rows
from rompatch.compute.value import Objective, optimise_values
from rompatch.default_model import DEFAULT_MODEL
from rompatch.edits import EditRequest
from rompatch.models import Base, load_base, wrap
from rompatch.verify.atlas import load_atlas
from rompatch.verify.reading import load_counterfact
from rompatch.workflows.presets import preset_for

PLAIN = RomeHparams()
"""The authors' settings: 20 steps of Adam under 21 contexts."""


def requests_from(path: Path | None, count: int) -> list[EditRequest]:
    """*count* requests, evenly spread over the file or the atlas."""
    if path is not None:
        records = load_counterfact(path)
        return [record.request for record in records[:: max(1, len(records) // count)][:count]]
    found = []
    for relation in load_atlas():
        facts = relation.facts
        found += [
            EditRequest(fact.subject, relation.templates[0], other.object, fact.object)
            for fact, other in itertools.pairwise(facts)
            if fact.object != other.object
        ]
    return found[:: max(1, len(found) // count)][:count]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def taking_turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each side."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return {name: statistics.median(found) for name, found in times.items()}


def matmul_rate(size: int = 2048, rounds: int = 7) -> float:
    """The rate of a large float32 product here and now, in operations a second: the middle of some."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    left @ right
    return 2 * size**3 / statistics.median(seconds(lambda: left @ right) for _ in range(rounds))


class Edit:
    """One request, ready to be optimised either way."""

    def __init__(self, base: Base, layer: int, contexts: Sequence[str], request: EditRequest) -> None:
        self.base, self.site = base, base.site(layer)
        self.contexts, self.request = contexts, request
        prompts = encode_contexts(base.tokenizer, request, contexts, True)
        self.output = gather_keys(base.model, base.tokenizer, self.site, prompts).output

    def rows(self, hparams: RomeHparams) -> ValueRows:
        contexts = value_contexts(self.contexts, hparams.value_contexts)
        return value_rows(self.base.tokenizer, self.request, contexts, True)

    def replayed(self, hparams: RomeHparams) -> list[float]:
        """The recording and all steps; the losses."""
        batch = RowBatch((self.rows(hparams),))
        replay = can_replay(self.base, [self.site], batch)
        replayer = make_replayer(self.base, [self.site], batch, replay=replay)
        objective = Objective(replayer, batch, self.output.norm()[None, None], hparams)
        (found,) = optimise_values(objective, self.output[None, None], hparams)
        if isinstance(found, Exception):
            raise found
        return [loss.total for loss in found.losses]

    def plain(self, hparams: RomeHparams) -> list[float]:
        """The plain loop; the losses."""
        return NaiveLoop(self.base, self.site, self.rows(hparams), self.output, hparams).optimise()


def edit_part(base: Base, layer: int, requests: Sequence[EditRequest], fast: RomeHparams) -> dict[str, Any]:
    """Replay against the plain loop, and the best settings against it, edit by edit."""
    contexts = sample_contexts(base.model, base.tokenizer, 0)
    plain = replace(PLAIN, early_stop_loss=0.0)  # the same number of steps for both
    shape = shape_of(base.model, base.architecture, base.site(layer).d_in)
    rates, rows = [matmul_rate()], []
    Edit(base, layer, contexts, requests[0]).replayed(replace(plain, steps=2))  # the check of the replay, once
    for request in requests:
        edit = Edit(base, layer, contexts, request)
        losses: dict[str, list[float]] = {}

        def run(name: str, work: Callable[[], list[float]], losses: dict[str, list[float]] = losses) -> None:
            losses[name] = work()

        times = {
            name: seconds(lambda: run(name, work))  # noqa: B023
            for name, work in (
                ("naive", lambda: edit.plain(plain)),  # noqa: B023
                ("replay", lambda: edit.replayed(plain)),  # noqa: B023
                ("best", lambda: edit.replayed(fast)),  # noqa: B023
            )
        }
        rates.append(matmul_rate())  # before and after each edit: other work on the machine slows both
        rate = statistics.mean(rates[-2:])
        cost = replay_cost(shape, layer, [edit.rows(plain)])
        rows.append(
            {
                "request": request.prompt,
                "tail": edit.rows(plain).tail,
                **{f"{name}_seconds": spent for name, spent in times.items()},
                "replay_ratio": times["naive"] / times["replay"],
                "best_ratio": times["naive"] / times["best"],
                "best_steps": len(losses["best"]),
                "largest_difference_of_loss": max(
                    abs(a - b) for a, b in zip(losses["naive"], losses["replay"], strict=True)
                ),
                "gflop": cost.total(plain.steps) / 1e9,
                "naive_gflop": naive_cost(shape, layer, [edit.rows(plain)]).total(plain.steps) / 1e9,
                "share": cost.total(plain.steps) / times["replay"] / rate,
            }
        )
        _print_edit(rows[-1])
    middle = {name: statistics.median(row[name] for row in rows) for name in ("replay_ratio", "best_ratio", "share")}
    rate = statistics.median(rates)
    print(
        f"median: replay {middle['replay_ratio']:.1f} times as fast as the plain loop, best settings "
        f"{middle['best_ratio']:.1f} times; {middle['share']:.0%} of the matmul rate ({rate / 1e9:.0f} GFLOP/s)"
    )
    return {"rate": rate, "edits": rows, **middle}


def _print_edit(row: dict[str, Any]) -> None:
    print(
        f"{row['request'][:44]:44}  tail {row['tail']:2}  naive {row['naive_seconds']:6.2f} s  "
        f"replay {row['replay_seconds']:5.2f} s ({row['replay_ratio']:.1f}x, {row['share']:.0%} of the rate)  "
        f"best {row['best_seconds']:5.2f} s ({row['best_ratio']:.1f}x, {row['best_steps']} steps)  "
        f"losses differ by {row['largest_difference_of_loss']:.0e}",
        flush=True,
    )


def batch_part(base: Base, layer: int, requests: Sequence[EditRequest], fast: RomeHparams) -> dict[str, Any]:
    """Many edits at once against one by one, by the settings of the preset."""
    contexts = sample_contexts(base.model, base.tokenizer, 0)
    site = base.site(layer)

    shape = shape_of(base.model, base.architecture, site.d_in)
    steps: list[tuple[EditRequest, int]] = []

    def run(chunks: Sequence[Sequence[EditRequest]]) -> float:
        steps.clear()

        def work() -> None:
            for chunk in chunks:
                found = compute_many(base, chunk, site=site, contexts=contexts, statistics=None, hparams=fast)
                for index, computation in found:
                    if isinstance(computation, Exception):
                        raise computation
                    steps.append((chunk[index], len(computation.measurements["losses"])))

        return seconds(work)

    run([requests[:1]])
    single, rate, together = run([[request] for request in requests]), matmul_rate(), run([requests])
    chosen = value_contexts(contexts, fast.value_contexts)
    floor = sum(
        replay_cost(shape, layer, [value_rows(base.tokenizer, request, chosen, True)]).total(count)
        for request, count in steps
    )
    share = floor / together / rate
    print(
        f"{len(requests)} edits: one by one {single / len(requests):.2f} s an edit, together "
        f"{together / len(requests):.2f} s an edit, {single / together:.2f} times as fast; "
        f"{share:.0%} of the matmul rate"
    )
    return {
        "edits": len(requests),
        "single_seconds": single,
        "batch_seconds": together,
        "ratio": single / together,
        "share": share,
    }


GROWTH = {"layers": 8, "layer": 2, "hidden": 256, "inner": 1024, "contexts": 8, "prefix": 12, "tail": 4, "target": 1}
"""The synthetic model and request that one quantity at a time is changed of."""
SERIES = {
    "layers after the site": [("layers", n, n - 3) for n in (4, 8, 16, 32)],
    "tokens before the subject": [("prefix", n, n) for n in (0, 8, 32, 128)],
    "tokens from the subject on": [("tail", n, n) for n in (2, 4, 8, 16)],
    "contexts": [("contexts", n, n) for n in (2, 4, 8, 16, 32)],
    "target tokens": [("target", n, n) for n in (1, 2, 4)],
    "d_in": [("inner", n, n) for n in (512, 1024, 2048, 4096)],
}


def synthetic(sizes: dict[str, int]) -> Base:
    """A random Llama of these sizes; nothing it says means anything."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["inner"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.train(False)
    model.requires_grad_(False)
    return wrap(model, load_base(DEFAULT_MODEL).tokenizer, "synthetic")


def synthetic_rows(sizes: dict[str, int]) -> ValueRows:
    """Random tokens: *contexts* rows of *prefix* and *tail* tokens, the last of them a target's, and the essence."""
    from rompatch.compute.rows import EditedRow

    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(0, 4096, (n,), generator=generator).tolist()

    tail = max(sizes["tail"], sizes["target"])
    rows = [EditedRow(ids(sizes["prefix"] + tail), sizes["prefix"]) for _ in range(sizes["contexts"])]
    return ValueRows((*rows, EditedRow(ids(sizes["prefix"] + 1), sizes["prefix"])), torch.arange(sizes["target"]))


def growth_part(rounds: int = 5) -> dict[str, Any]:
    """Milliseconds of one step, replay and plain, while one quantity grows."""
    found: dict[str, Any] = {}
    for title, points in SERIES.items():
        rows = []
        for name, value, shown in points:
            sizes = {**GROWTH, name: value}
            base = synthetic(sizes)
            rows.append({"value": shown, **_step_times(base, sizes, rounds)})
            print(
                f"{title:26} {shown:5}  replay {rows[-1]['replay'] * 1e3:7.1f} ms  "
                f"plain {rows[-1]['naive'] * 1e3:7.1f} ms  floor {rows[-1]['gflop']:6.2f} GFLOP",
                flush=True,
            )
        found[title] = rows
    return found


def _step_times(base: Base, sizes: dict[str, int], rounds: int) -> dict[str, float]:
    site, rows = base.site(sizes["layer"]), synthetic_rows(sizes)
    batch, hparams = RowBatch((rows,)), replace(PLAIN, early_stop_loss=0.0)
    output = torch.ones(1, site.d_out)
    assert can_replay(base, [site], batch)
    replayer = make_replayer(base, [site], batch, replay=True)
    objective = Objective(replayer, batch, output.norm(dim=1)[:, None], hparams)
    naive = NaiveLoop(base, site, rows, output[0], hparams)
    start = torch.zeros(1, site.d_out)

    def step() -> None:
        at = start.clone().requires_grad_(True)
        torch.autograd.grad(objective(at).total.sum(), at)

    sides = {"replay": step, "naive": lambda: naive.step(start)}
    taking_turns(sides, 2)
    cost: EditCost = replay_cost(shape_of(base.model, base.architecture, site.d_in), site.layer, [rows])
    return {**taking_turns(sides, rounds), "gflop": (cost.forward + cost.backward) / 1e9}


def plot(growth: dict[str, Any], path: Path) -> None:
    """One panel a quantity, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rompatch"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    for axis, (title, rows) in zip(axes.flat, growth.items(), strict=True):
        values = [max(row["value"], 1) for row in rows]
        for name, label, style in (("naive", "plain loop", "s--"), ("replay", "rompatch", "o-")):
            axis.plot(values, [1e3 * row[name] for row in rows], style, label=label)
        axis.set(xscale="log", yscale="log", xlabel=title)
        axis.set_xticks(values, [str(row["value"]) for row in rows], minor=False)
        axis.minorticks_off()
    axes[0, 0].set_ylabel("ms a step")
    axes[1, 0].set_ylabel("ms a step")
    axes[0, 0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", default=[])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    parts = args.parts or ["edit", "batch", "growth"]
    found: dict[str, Any] = {}
    if {"edit", "batch"} & set(parts):
        base = load_base(args.model)
        preset = preset_for(base)
        fast = RomeHparams(**preset.hparams)
        layer = base.preset_layer if preset.layer is None else preset.layer
        print(f"best settings: {preset.source}, {dict(preset.hparams)}")
        if "edit" in parts:
            found["edit"] = edit_part(base, layer, requests_from(args.records, args.edits), fast)
        if "batch" in parts:
            found["batch"] = batch_part(base, layer, requests_from(args.records, args.batch), fast)
    if "growth" in parts:
        found["growth"] = growth_part()
        if args.plot:
            plot(found["growth"], args.plot)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
