"""What key statistics C are worth: COUNTERFACT scores of the same edits under different C.

    python benchmarks/statistics_worth.py FILE [--limit 60] [--statistics none,0aee,1531] [--layer N] [--ridge X,Y]
        [--json FILE]

The value v* does not depend on C, so it is optimised once a record; each C then gives its own direction u = C^-1 k
and its own rank-one update, scored as `rompatch bench` scores. Ids are those of `rompatch stats list`; `none` is the
identity. The second table pairs each C with the first one named, over the same records.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from stacks import suite_of
from torch import Tensor

import rompatch
from rompatch.bench.running import GROUP
from rompatch.compute import rome as equations
from rompatch.compute.methods.rome import KEY_ROWS
from rompatch.errors import RompatchError
from rompatch.patch import SiteFactors
from rompatch.reporting import Reporter
from rompatch.sites import Site
from rompatch.verify.evaluation import Evaluation, evaluate_batch
from rompatch.verify.intervals import Estimate, compare, summarise
from rompatch.verify.reading import load_counterfact
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.updates import SiteTerm
from rompatch.workflows.computing import Workshop, compute_requests, workshop
from rompatch.workflows.method_options import EditSetting, MethodOptions, edit_setting
from rompatch.workflows.statistics import NO_STATISTICS, statistics_for

NAMES = ("s", "es", "em", "ps", "pm", "ns", "nm")
Rows = dict[int, dict[str, float | None]]


def values_of(shop: Workshop, records: Sequence[CounterfactRecord], reporter: Reporter) -> dict[int, SiteFactors]:
    """Keys, v* and W k of each record, by case id. Their u is that of the workshop's C, which may be none."""
    found = {}
    for index, outcome in compute_requests(shop, [record.request for record in records], reporter):
        if isinstance(outcome, RompatchError):
            print(f"record {records[index].case_id}: {outcome}")
            continue
        (found[records[index].case_id],) = outcome.patch.factors
    return found  # type: ignore[return-value]


def term(site: Site, factors: SiteFactors, factor: Tensor | None, key_mode: str) -> SiteTerm:
    """The rank-one update of *factors* under the C of which *factor* is the Cholesky factor (None: C = I)."""
    keys = torch.from_numpy(factors.key).double()
    row = keys[0] if factor is None else equations.inverse_rows(keys, factor)[0]
    residual = torch.from_numpy(factors.value - factors.base_out)[-1].double()
    vector = equations.update_vector(residual, keys[KEY_ROWS[key_mode]], row)
    return SiteTerm.of(site, vector[:, None], row[None])


def scored(
    setting: EditSetting, records: Sequence[CounterfactRecord], terms: Sequence[SiteTerm]
) -> list[tuple[Evaluation, Evaluation]]:
    """Each record before its edit and after it."""
    base, found = setting.base, []
    for start in range(0, len(records), GROUP):
        part = slice(start, start + GROUP)
        suites = [suite_of(record) for record in records[part]]
        edits = [[one] for one in terms[part]]
        found += evaluate_batch(base.model, base.tokenizer, suites, edits, document_start=setting.document_start)
    return found


def cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    half = "" if estimate.half_width is None else f" ({100 * estimate.half_width:.1f})"
    return f"{100 * estimate.value:.1f}{half}"


def print_table(head: str, lines: Mapping[str, Mapping[str, Estimate | None]]) -> None:
    print(f"\n| {head} | " + " | ".join(name.upper() for name in NAMES) + " |")
    print("| --- |" + " --- |" * len(NAMES))
    for label, estimates in lines.items():
        print(f"| {label} | " + " | ".join(cell(estimates[name]) for name in NAMES) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--statistics", default=NO_STATISTICS, help="ids and `none`, with commas between them")
    parser.add_argument("--layer", type=int, help="default: the preset's")
    parser.add_argument("--ridge", help="values with commas between them; default: the preset's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    records = list(load_counterfact(args.file))[: args.limit]
    with tempfile.TemporaryDirectory() as folder, rompatch.open_store(Path(folder) / ".rompatch") as store:
        setting = edit_setting(
            store, MethodOptions(layer=args.layer, statistics=NO_STATISTICS, hparams={"keys": "mixed", "spread": 1})
        )
        factors = values_of(workshop(setting, store.reporter), records, store.reporter)
        records = [record for record in records if record.case_id in factors]
        ridges = [float(part) for part in args.ridge.split(",")] if args.ridge else [setting.hparams.ridge]
        rows: dict[str, Rows] = {}
        for wanted in args.statistics.split(","):
            found = statistics_for(setting.base, setting.site, wanted, setting.seed, store.reporter)
            for ridge in ridges if found is not None else ridges[:1]:
                label = wanted if found is None else f"{found.key.corpus}, {found.tokens:,} tokens"
                label += f", ridge {ridge:g}" if len(ridges) > 1 and found is not None else ""
                factor = None if found is None else found.factor(ridge)
                terms = [term(setting.site, factors[one.case_id], factor, setting.hparams.keys) for one in records]
                pairs = scored(setting, records, terms)
                cases = [record.case_id for record in records]
                before = {case: a.scores.to_json() for case, (a, _) in zip(cases, pairs, strict=True)}
                rows.setdefault("unedited", before)
                rows[label] = {case: b.scores.to_json() for case, (_, b) in zip(cases, pairs, strict=True)}
                print(label, {name: cell(one) for name, one in summarise([*rows[label].values()], NAMES).items()})
    lines = {label: summarise(list(one.values()), NAMES) for label, one in rows.items()}
    print_table(f"C ({len(records)} records)", lines)
    first, *others = [label for label in rows if label != "unedited"]
    print_table(f"against {first}", {label: compare(rows[first], rows[label], NAMES) for label in others})
    if args.json:
        args.json.write_text(json.dumps({label: as_json(one) for label, one in lines.items()}, indent=1))


def as_json(estimates: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: None if one is None else one.to_json() for name, one in estimates.items()}


if __name__ == "__main__":
    main()
