"""The options that say how patches are computed; every command that computes some has them."""

from __future__ import annotations

from typing import Any

import click

from rompatch.cli.options import MODEL, PATH, WORDS, option, stacked

METHOD, OPTIMISATION = "Method", "Optimisation"
HPARAMS = (
    "keys",
    "gain",
    "spread",
    "ridge",
    "optimiser",
    "lr",
    "steps",
    "value_contexts",
    "weight_decay",
    "norm_penalty",
    "clamp_norm_factor",
    "kl_factor",
    "early_stop_loss",
    "target_loss",
)
"""Options that are hyper-parameters of the method, by its own names."""

method_options = stacked(
    option("--layer", type=int, metavar="N", group=MODEL, help="The layer to edit. Default: the preset's."),
    option("--preset", type=PATH, metavar="FILE", group=METHOD, help="Layer and hyper-parameters from a JSON file."),
    option("--seed", type=int, metavar="N", group=METHOD, help="Of the contexts. Default: 0, or as in --like."),
    option(
        "--key",
        "keys",
        type=click.Choice(["mixed", "mean", "both"]),
        group=METHOD,
        help="u from the mean key and the residual from the bare prompt's (mixed), one key for both (mean), or one "
        "residual for two keys, the mean and the bare prompt's (both).",
    ),
    option("--gain", type=float, metavar="X", group=METHOD, help="The residual is X times the optimised delta."),
    option(
        "--spread",
        type=int,
        metavar="N",
        group=METHOD,
        help="Spread the value over N layers, the edited one and those right below; with --key both.",
    ),
    option(
        "--document-start/--no-document-start",
        default=None,
        group=METHOD,
        help="Put the document separator before every prompt, or not. Default: the preset's.",
    ),
    option(
        "--statistics",
        type=WORDS,
        default="auto",
        show_default=True,
        metavar="auto|none|ID",
        group=METHOD,
        help="Key statistics C: the best at hand, none, or those of `rompatch stats list`. With --spread an ID is the "
        "highest layer's; the others' are of the same text and number of tokens.",
    ),
    option("--ridge", type=float, metavar="X", group=METHOD, help="Added to C, relative to its mean diagonal."),
    option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        default="auto",
        show_default=True,
        group=OPTIMISATION,
        help="Of the products; auto takes the faster one here, measured once.",
    ),
    option(
        "--optimiser",
        type=click.Choice(["adam", "lbfgs"]),
        group=OPTIMISATION,
        help="The authors' Adam, or L-BFGS, which needs fewer steps.",
    ),
    option(
        "--value-contexts", type=int, metavar="N", group=OPTIMISATION, help="Optimise v* under N of the 21 contexts."
    ),
    option("--lr", type=float, metavar="X", group=OPTIMISATION, help="Learning rate of Adam."),
    option("--steps", type=int, metavar="N", group=OPTIMISATION, help="Steps at most."),
    option("--weight-decay", type=float, metavar="X", group=OPTIMISATION, help="Weight of the norm of delta."),
    option("--norm-penalty", type=float, metavar="X", group=OPTIMISATION, help="Weight of (||delta|| / ||W k||)^2."),
    option("--clamp-norm-factor", type=float, metavar="X", group=OPTIMISATION, help="||delta|| <= X ||W k||."),
    option("--kl-factor", type=float, metavar="X", group=OPTIMISATION, help="Weight of the essence term."),
    option("--early-stop-loss", type=float, metavar="X", group=OPTIMISATION, help="Stop below this loss."),
    option(
        "--target-loss", type=float, metavar="X", group=OPTIMISATION, help="Stop below this loss of the object alone."
    ),
)


def taken_apart(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the base is, and the hyper-parameters that were set; both are taken out of *given*."""
    spec = {name: given.pop(name) for name in ("model", "dtype", "module")}
    return spec, {name: value for name in HPARAMS if (value := given.pop(name)) is not None}
