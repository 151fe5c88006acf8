"""How many facts one model holds: COUNTERFACT edits stacked, summed against solved jointly.

    python benchmarks/stacks.py FILE [FILE ...] [--counts 60,200,500] [--layers 4] [--score 60] [--patches FOLDER]
        [--key both] [--spread 3] [--gain 1.2] [--clamp-norm-factor 1.5] [--norm-penalty 0.3]
        [--target-loss 0] [--ridge 0.1,0.3]
        [--text FILE] [--tokens 4096] [--json FILE] [--plot FILE.svg [--also FILE ...]]

One patch a record, of the records with distinct subjects, in the model's preset; with several layers patch i goes to
the (i mod n)-th of them, with --spread every patch to that layer and those below. Some of the first 60 (200, 500) are
scored alone and in the stack of all of them:

summed  W + sum of the patches' own updates, what a series of separate edits leaves
joint   W + Delta_S, the solution that rompatch applies

Drift is measured on --text (WikiText-2, test split, from ROMPATCH_DATA). Patches are kept in --patches, so that an
interrupted run goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import rompatch
from rompatch.apply.forecast import update_norm
from rompatch.apply.gram import concatenated, constraints_of, similarities
from rompatch.apply.solve import JOINT_RIDGE, SAME_KEY, SiteUpdate, by_site, materialise, solve_site, solve_stack
from rompatch.errors import RompatchError
from rompatch.models import Base
from rompatch.offload import WeightSlot
from rompatch.patch import Patch
from rompatch.patchfile import read, write
from rompatch.sites import Site
from rompatch.verify.building import suite_from_counterfact
from rompatch.verify.drift import measure_drift
from rompatch.verify.evaluation import evaluate_batch
from rompatch.verify.metrics import Scores, mean_scores
from rompatch.verify.reading import load_counterfact
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.suite import Suite
from rompatch.verify.updates import SiteTerm
from rompatch.workflows.computing import compute_requests, workshop
from rompatch.workflows.method_options import MethodOptions, edit_setting
from rompatch.workflows.opened import OpenStore

DATA = Path(os.environ.get("ROMPATCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
KINDS = ("rewrite", "paraphrase", "neighbourhood")
"""What S is made of; attribute prompts would take a third of the time and change nothing in it."""
BATCH = 50

Updates = Mapping[str, SiteUpdate]


@dataclass(frozen=True)
class Measured:
    """One stack: its size, layers and way, the scores of the scored records, and what it does to the model."""

    count: int
    layers: tuple[int, ...]
    way: str
    scores: Scores
    alone: Scores
    drift: float
    mean_kl: float
    relative_norms: tuple[float, ...]
    least_met: float | None = None

    @property
    def share(self) -> float | None:
        """S as a part of what the same records score alone."""
        return None if self.scores.s is None or not self.alone.s else self.scores.s / self.alone.s

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "scores": self.scores.to_json(), "alone": self.alone.to_json(), "share": self.share}


def records_of(paths: Sequence[Path]) -> list[CounterfactRecord]:
    """The records of *paths* with distinct subjects, in their order."""
    found: dict[str, CounterfactRecord] = {}
    for path in paths:
        for record in load_counterfact(path):
            found.setdefault(record.subject.casefold().strip(), record)
    return list(found.values())


def suite_of(record: CounterfactRecord) -> Suite:
    suite = suite_from_counterfact(record)
    return Suite(suite.name, suite.source, tuple(prompt for prompt in suite.prompts if prompt.kind in KINDS))


def patches_at(
    store: OpenStore, records: Sequence[CounterfactRecord], options: MethodOptions, folder: Path
) -> dict[int, Patch]:
    """A patch for each record, by case id: those in *folder*, the others computed and put there."""
    setting = edit_setting(store, options)
    hparams = setting.hparams
    place = folder / "-".join(
        f"{name}-{value}"
        for name, value in (
            ("layer", setting.site.layer),
            ("spread", hparams.spread),
            ("keys", hparams.keys),
            ("gain", hparams.gain),
            ("clamp", hparams.clamp_norm_factor),
            ("penalty", hparams.norm_penalty),
            ("target", hparams.target_loss),
        )
    )
    place.mkdir(parents=True, exist_ok=True)
    files = {record.case_id: place / f"{record.case_id}.safetensors" for record in records}
    missing = [record for record in records if not files[record.case_id].exists()]
    shop = workshop(setting, store.reporter) if missing else None
    for start in range(0, len(missing), BATCH):
        part = missing[start : start + BATCH]
        assert shop is not None
        for index, outcome in compute_requests(shop, [record.request for record in part], store.reporter):
            if isinstance(outcome, RompatchError):
                print(f"record {part[index].case_id}: {outcome}", file=sys.stderr)
            else:
                write(outcome.patch, files[part[index].case_id])
        print(f"layer {setting.site.layer}: {start + len(part)} of {len(missing)} patches", file=sys.stderr)
    return {case: read(path) for case, path in files.items() if path.exists()}


def summed(patches: Sequence[Patch]) -> Updates:
    """Sum of the updates that the patches are alone, by parameter."""
    found = {}
    for parameter, factors in by_site(patches).items():
        alone = [solve_site([one]) for one in factors]
        found[parameter] = SiteUpdate(np.hstack([one.left for one in alone]), np.vstack([one.right for one in alone]))
    return found


def least_met(patches: Sequence[Patch], updates: Updates) -> float:
    """How far the worst served patch gets: the least (Delta k_i) . r_i / (r_i . r_i)."""
    least = np.inf
    for parameter, factors in by_site(patches).items():
        rows = concatenated([constraints_of(one) for one in factors])
        update = updates[parameter]
        moved = (rows.keys @ update.right.T) @ update.left.T
        met = np.sum(moved * rows.residuals, axis=1) / np.sum(rows.residuals**2, axis=1)
        least = min(least, float(met.min()))
    return least


def worst_residuals(base: Base, patches: Sequence[Patch]) -> dict[str, float]:
    """By parameter the greatest ||W' k_i - value_i|| / ||value_i|| of the weights that lambda = 0 gives, cast to the
    base's dtype. Patches that share a key are left out: their constraints contradict each other."""
    found = {}
    for parameter, update in solve_stack(patches, 0.0).items():
        site = site_of(base, parameter)
        edited = materialise(site.stored(), update, transposed=site.transposed).double().numpy()
        rows = [constraints_of(one) for one in by_site(patches)[parameter]]
        apart = [row for row, near in zip(rows, similarities(rows), strict=True) if (near > SAME_KEY).sum() == 1]
        joined = concatenated(apart)
        values = joined.residuals + joined.keys @ site.matrix().double().numpy().T
        made = joined.keys @ (edited.T if site.transposed is False else edited)
        found[parameter] = float((np.linalg.norm(made - values, axis=1) / np.linalg.norm(values, axis=1)).max())
    return found


def overshoots(patches: Sequence[Patch]) -> dict[str, tuple[float, float]]:
    """By parameter the 90 % quantile and the greatest of (k* u) / (k_bare u): what mixed keys give the mean key, as a
    multiple of delta."""
    found = {}
    for parameter, factors in by_site(patches).items():
        grams = [constraints_of(one).gram() for one in factors]
        ratios = np.array([gram[0, 0] / gram[0, 1] for gram in grams if len(gram) == 2])
        found[parameter] = (float(np.quantile(ratios, 0.9)), float(ratios.max()))
    return found


def site_of(base: Base, parameter: str) -> Site:
    return next(site for site in map(base.site, range(base.n_layers)) if site.parameter_name == parameter)


@contextmanager
def weights(base: Base, updates: Updates) -> Iterator[None]:
    """*updates* in the model's weights while the context lasts."""
    with ExitStack() as stack:
        for parameter, update in updates.items():
            site = site_of(base, parameter)
            slot = WeightSlot(site.module)
            edited = materialise(slot.stored(), update, transposed=site.transposed)
            stack.callback(slot.restore)
            slot.exchange(edited)
        yield


class Bench:
    """The base, the text and the scored records; scores alone are remembered."""

    def __init__(self, base: Base, text: str, tokens: int) -> None:
        self.base, self.text, self.tokens = base, text, tokens
        self._alone: dict[int, tuple[Scores, Scores]] = {}

    def alone(self, records: Sequence[CounterfactRecord], patches: Mapping[int, Patch]) -> tuple[Scores, Scores]:
        """Mean scores before any edit and with each record's patch alone."""
        new = [record for record in records if record.case_id not in self._alone]
        edits = [
            [
                SiteTerm.of(site_of(self.base, name), one.left, one.right)
                for name, one in solve_stack([patches[record.case_id]]).items()
            ]
            for record in new
        ]
        suites = [suite_of(record) for record in new]
        scored = evaluate_batch(self.base.model, self.base.tokenizer, suites, edits, document_start=True)
        self._alone |= {record.case_id: (a.scores, b.scores) for record, (a, b) in zip(new, scored, strict=True)}
        before, after = zip(*(self._alone[record.case_id] for record in records), strict=True)
        return mean_scores(before), mean_scores(after)

    def stack(
        self,
        way: str,
        layers: Sequence[int],
        count: int,
        updates: Updates,
        scored: Sequence[CounterfactRecord],
        alone: Scores,
    ) -> Measured:
        """One stack, scored and read with."""
        base, suites = self.base, [suite_of(record) for record in scored]
        with weights(base, updates):
            pairs = evaluate_batch(base.model, base.tokenizer, suites, [()] * len(suites), document_start=True)
        drift = measure_drift(
            base.model,
            base.tokenizer,
            [self.text],
            lambda: weights(base, updates),
            document_start=True,
            max_tokens=self.tokens,
        )
        return Measured(
            count=count,
            layers=tuple(layers),
            way=way,
            scores=mean_scores([before.scores for before, _ in pairs]),
            alone=alone,
            drift=drift.perplexity_after / drift.perplexity_before - 1,
            mean_kl=drift.mean_kl,
            relative_norms=tuple(update_norm(one) / site_of(base, name).norm() for name, one in updates.items()),
        )


def evenly(records: Sequence[CounterfactRecord], count: int) -> list[CounterfactRecord]:
    """*count* of them, evenly spread."""
    return list(records) if len(records) <= count else [records[i * len(records) // count] for i in range(count)]


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def line(one: Measured) -> str:
    cells = [str(one.count), " ".join(map(str, one.layers)), one.way]
    cells += [percent(getattr(one.scores, name)) for name in ("s", "es", "em", "ps", "pm", "ns")]
    cells += [percent(one.share), f"{100 * one.drift:+.1f}", f"{one.mean_kl:.3f}"]
    return (
        "| "
        + " | ".join([*cells, " ".join(f"{norm:.2f}" for norm in one.relative_norms), percent(one.least_met)])
        + " |"
    )


HEAD = (
    "| edits | layers | way | S | ES | EM | PS | PM | NS | S, % of alone | perplexity, % | KL, nats | norm | met, % |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def plot(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """S as a part of the scores alone, and drift, against the number of edits; rows as :meth:`Measured.to_json`."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rompatch"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for way, layers in sorted({(one["way"], tuple(one["layers"])) for one in found}):
        rows = sorted(
            (one for one in found if (one["way"], tuple(one["layers"])) == (way, layers)), key=lambda one: one["count"]
        )
        label = f"{way}, layer {' '.join(map(str, layers))}"
        axes[0].plot([one["count"] for one in rows], [100 * (one["share"] or 0) for one in rows], "o-", label=label)
        axes[1].plot([one["count"] for one in rows], [100 * one["drift"] for one in rows], "o-", label=label)
    axes[0].set(xlabel="edits in the stack", ylabel="S, % of S alone")
    axes[1].set(xlabel="edits in the stack", ylabel="perplexity, % above the base's")
    axes[1].set_yscale("symlog", linthresh=10)
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--counts", type=numbers, default=[60, 200, 500])
    parser.add_argument("--layers", type=numbers, help="default: the preset's layer")
    parser.add_argument("--score", type=int, default=60)
    parser.add_argument(
        "--ways",
        default="summed,joint",
        help="summed, joint, none; without scores: residuals (what lambda = 0 leaves), overshoots (of mixed keys)",
    )
    parser.add_argument("--ridge", default=str(JOINT_RIDGE), help="lambda of the joint solution; several with commas")
    parser.add_argument("--key", dest="keys", help="as create's; default: the preset's")
    parser.add_argument("--spread", type=int, help="as create's; default: the preset's")
    parser.add_argument("--gain", type=float, help="as create's; default: the preset's")
    parser.add_argument("--clamp-norm-factor", type=float, help="as create's; default: the preset's")
    parser.add_argument("--norm-penalty", type=float, help="as create's; default: the preset's")
    parser.add_argument("--target-loss", type=float, help="as create's; default: the preset's")
    parser.add_argument("--patches", type=Path)
    parser.add_argument("--text", type=Path, default=DATA / "text" / "wikitext2-raw-test.txt")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="--json files of other runs, for the plot")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder, rompatch.open_store(Path(folder) / ".rompatch") as store:
        records = records_of(args.files)[: max(args.counts)]
        layers = args.layers or [edit_setting(store, MethodOptions()).site.layer]
        names = ("keys", "spread", "gain", "clamp_norm_factor", "norm_penalty", "target_loss")
        given = {name: getattr(args, name) for name in names}
        hparams = {name: value for name, value in given.items() if value is not None}
        patches: dict[int, Patch] = {}
        for place, layer in enumerate(layers):
            options = MethodOptions(layer=layer, hparams=hparams)
            patches |= patches_at(store, records[place :: len(layers)], options, args.patches or Path(folder))
        records = [record for record in records if record.case_id in patches]
        bench = Bench(store.base(), args.text.read_text(encoding="utf-8")[: 16 * args.tokens], args.tokens)
        print(HEAD)
        for count in args.counts:
            members = records[:count]
            stack, scored = [patches[record.case_id] for record in members], evenly(members, args.score)
            if args.ways == "overshoots":
                print(count, {name: f"{high:.2f} {most:.1f}" for name, (high, most) in overshoots(stack).items()})
                continue
            if args.ways == "residuals":
                print(count, {name: f"{worst:.1e}" for name, worst in worst_residuals(store.base(), stack).items()})
                continue
            edited = sorted({site.layer for patch in stack for site in patch.header.sites})
            before, alone = bench.alone(scored, patches)
            named = {"unedited": before, "alone": alone}
            for way, scores in named.items():
                print(line(Measured(len(members), tuple(edited), way, scores, alone, 0.0, 0.0, ())), flush=True)
            ways = {"summed": summed(stack)} if "summed" in args.ways else {}
            for ridge in args.ridge.split(","):
                if "joint" in args.ways:
                    ways[f"joint, lambda {ridge}"] = solve_stack(stack, float(ridge))
            for way, updates in ways.items():
                measured = bench.stack(way, edited, len(members), updates, scored, alone)
                found.append(replace(measured, least_met=least_met(stack, updates)))
                print(line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps([one.to_json() for one in found], indent=1), encoding="utf-8")
    if args.plot:
        others = [row for path in args.also for row in json.loads(path.read_text(encoding="utf-8"))]
        plot([*others, *(one.to_json() for one in found)], args.plot)


if __name__ == "__main__":
    main()
