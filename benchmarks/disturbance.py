"""What an edit costs the rest of the model, to second order, and how much that differs between subjects and layers.

    python benchmarks/disturbance.py FILE [--layers 3-5] [--limit 200] [--text FILE] [--windows 16] [--json FILE]

An update Delta of a site disturbs text by KL = tr(F Delta C Delta^T) / 2 nats a token, where C = E[k k^T] of the site's
input and F = E[g g^T] of the gradients g of -log P[token] at the site's output, tokens drawn from the model itself (the
Fisher information, Kronecker-factored: arXiv 1503.05671). For a ROME update that is delta^T F delta / (2 k^T C^-1 k).

Printed for each layer: how far F is from a multiple of the identity (its largest eigenvalues' share of its trace), and
the quantiles over the records' subjects of the price of an edit as long as W k, tr(F) / d_out * ||W k||^2 /
(2 k^T C^-1 k), with k of the bare prompt and C of `rompatch stats list`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import rompatch
from rompatch.compute import rome as equations
from rompatch.compute.gather import encode_contexts, gather_many
from rompatch.hooks import evaluation_mode
from rompatch.models import Base
from rompatch.reporting import Reporter
from rompatch.sites import Site
from rompatch.tokens import document_start_ids
from rompatch.verify.reading import load_counterfact
from rompatch.verify.records import CounterfactRecord
from rompatch.workflows.method_options import MethodOptions, edit_setting
from rompatch.workflows.statistics import statistics_for

DATA = Path(os.environ.get("ROMPATCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
WINDOW = 512
SHARES = (1, 10, 100)
QUANTILES = (0.05, 0.5, 0.95)
BATCH = 16
"""Records whose keys are gathered at once."""


def windows_of(base: Base, text: str, count: int) -> list[list[int]]:
    """*count* windows of WINDOW tokens, evenly spread over *text*."""
    starts = [len(text) * place // count for place in range(count)]
    ids = [base.tokenizer(text[at : at + 16 * WINDOW], add_special_tokens=False)["input_ids"] for at in starts]
    start = document_start_ids(base.tokenizer, True)
    return [[*start, *found[: WINDOW - len(start)]] for found in ids]


def fisher(base: Base, sites: Sequence[Site], windows: Sequence[Sequence[int]], seed: int = 0) -> list[Tensor]:
    """F of each site, (d_out, d_out) float64. The first token of a window is not counted."""
    generator = torch.Generator().manual_seed(seed)
    sums = [torch.zeros(site.d_out, site.d_out, dtype=torch.float64) for site in sites]
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs[module] = output if output.requires_grad else output.detach().requires_grad_(True)
        return outputs[module]

    handles = [site.module.register_forward_hook(keep) for site in sites]
    try:
        for ids in windows:
            logits = base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(dim=1), 1, generator=generator)[:, 0]
            loss = cross_entropy(logits, drawn, reduction="sum")
            gradients = torch.autograd.grad(loss, [outputs[site.module] for site in sites])
            for total, gradient in zip(sums, gradients, strict=True):
                rows = gradient[0, 1:].double()
                total.addmm_(rows.T, rows)
    finally:
        for handle in handles:
            handle.remove()
    counted = sum(len(ids) - 1 for ids in windows)
    return [total / counted for total in sums]


def prices(
    base: Base, site: Site, records: Sequence[CounterfactRecord], factor: Tensor, information: Tensor
) -> np.ndarray:
    """Nats a token for an edit as long as W k, one for each record, (n,)."""
    found = []
    for start in range(0, len(records), BATCH):
        prompts = [
            encode_contexts(base.tokenizer, record.request, ("{}",), True) for record in records[start : start + BATCH]
        ]
        for gathered in gather_many(base.model, base.tokenizer, site, prompts):
            key = gathered.bare.double()
            leverage = key @ equations.inverse_rows(key[None], factor)[0]
            found.append(float(gathered.output.double().square().sum() / leverage))
    return np.array(found) * float(information.trace()) / len(information) / 2


def layers_of(text: str) -> list[int]:
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=layers_of, help="N or N-M; default: the preset's")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--text", type=Path, default=DATA / "text" / "enwiki-96-articles.txt")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    records = list(load_counterfact(args.file))[: args.limit]
    with tempfile.TemporaryDirectory() as folder, rompatch.open_store(Path(folder) / ".rompatch") as store:
        setting = edit_setting(store, MethodOptions())
        base = setting.base
        sites = [base.site(layer) for layer in args.layers or [setting.site.layer]]
        for parameter in base.model.parameters():
            parameter.requires_grad_(False)
        found = {}
        with evaluation_mode(base.model):
            informations = fisher(base, sites, windows_of(base, args.text.read_text(encoding="utf-8"), args.windows))
            for site, information in zip(sites, informations, strict=True):
                statistics = statistics_for(base, site, "auto", 0, Reporter())
                assert statistics is not None
                values = np.linalg.eigvalsh(information.numpy())[::-1]
                each = prices(base, site, records, statistics.factor(setting.hparams.ridge), information)
                found[site.layer] = {
                    "shares": {count: float(values[:count].sum() / values.sum()) for count in SHARES},
                    "median": float(np.median(each)),
                    "quantiles": [float(one) for one in np.quantile(each, QUANTILES) / np.median(each)],
                }
    print(f"{len(records)} records; price of an edit of one norm of W k, nats a token")
    for layer, one in found.items():
        shares = ", ".join(f"{count}: {100 * share:.0f} %" for count, share in one["shares"].items())
        spread = ", ".join(f"{quantile:.2f}" for quantile in one["quantiles"])
        print(f"layer {layer}: {one['median']:.2e}, 5/50/95 % over median {spread}; F's trace in its largest {shares}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
