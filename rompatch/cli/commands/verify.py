"""``verify``: score a patch, or every patch of the active stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rompatch.cli import render
from rompatch.cli.options import PATH, WORDS, F, command, json_option, model_options, option
from rompatch.cli.settings import Settings

if TYPE_CHECKING:
    from rompatch.workflows.stack_report import StackVerified
    from rompatch.workflows.store import Store
    from rompatch.workflows.verifying import Verified

GATES = "Gates"
STACK = "Whole stack"
_GATES = {"min_score": "s", "min_es": "es", "min_ps": "ps", "min_ns": "ns"}
_OF_A_PATCH = {"suite": "--suite", "in_stack": "--in-stack"}
_OF_A_STACK = {
    "max_loss": "--max-loss",
    "max_drift": "--max-drift",
    "drift": "--drift",
    "no_drift": "--no-drift",
    "no_baseline": "--no-baseline",
}


def _gate(*names: str, what: str) -> Callable[[F], F]:
    return option(*names, type=float, metavar="PERCENT", group=GATES, help=f"Exit with 3 when {what}.")


@command(
    "verify",
    examples=(
        'rompatch verify "Eiffel Tower"',
        "rompatch verify 3f2a --in-stack --min-score 80 --min-ns 60",
        "rompatch verify 3f2a --suite counterfact-record.json --json",
        "rompatch verify --stack --max-loss 10 --max-drift 2 --junit report.xml",
    ),
)
@click.argument("name", type=WORDS, required=False)
@option("--suite", type=PATH, metavar="FILE", help="A COUNTERFACT record or a rompatch suite. Default: the atlas's.")
@option("--in-stack", is_flag=True, help="Together with the active stack, not alone.")
@option("--worst", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Failing prompts shown.")
@option("--no-record", is_flag=True, help="Do not write the run to the ledger.")
@option("--junit", type=PATH, metavar="FILE", help="Write a report for build servers as well.")
@json_option
@option("--stack", is_flag=True, group=STACK, help="Every patch of the active stack, all of them in the model.")
@option("--no-baseline", is_flag=True, group=STACK, help="Score no patch alone that the ledger has no run of.")
@option("--drift", type=PATH, metavar="FILE", group=STACK, help="Text to measure drift on. Default: a built-in one.")
@option("--no-drift", is_flag=True, group=STACK, help="Do not measure drift.")
@_gate("--min-score", "--min-s", what="S after the edit is less; with --stack, that of any patch")
@_gate("--min-es", what="ES is less. With --stack and without this, when a rewrite prompt fails")
@_gate("--min-ps", what="PS is less")
@_gate("--min-ns", what="NS is less")
@_gate("--max-loss", what="a patch loses more of S in the stack, in points")
@_gate("--max-drift", what="perplexity rises by more through the stack")
@model_options
def verify_command(
    settings: Settings,
    name: str | None,
    stack: bool,
    worst: int,
    junit: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Score a patch before and after it is applied, or a whole stack.

    Rewrite (ES, EM), paraphrase (PS, PM) and neighbourhood (NS, NM) prompts, and S, the harmonic mean of ES, PS and
    NS. ES is the share of prompts where the new object is the likelier one, EM by how much; neighbours must keep
    their own. NAME is an id, four or more digits of one, or a subject. The active stack is left as it is.

    With --stack instead of NAME: every patch of the active stack on the finished model, against what each scored
    alone, and what the stack does to other text (drift).
    """
    from rompatch.workflows.junit import check_writable, write_junit

    _check_usage(name, stack, given)
    if junit is not None:
        check_writable(junit)
    with settings.open_store() as store:
        found = _verified(store, name, given)
    if as_json:
        render.emit_json(found.to_json())
    else:
        click.echo(_text(found, worst))
        if found.run is not None:
            settings.reporter().note(f"recorded as run {found.run.id}")
    if junit is not None:
        write_junit(found, junit)
    found.check_gates()


def _check_usage(name: str | None, stack: bool, given: Mapping[str, Any]) -> None:
    if stack and name is not None:
        raise click.UsageError(f"--stack is about every active patch: leave {name!r} out.")
    if not stack and name is None:
        raise click.MissingParameter("Name a patch, or give --stack.", param_type="argument", param_hint="'NAME'")
    for parameter, flag in (_OF_A_PATCH if stack else _OF_A_STACK).items():
        if given[parameter] is not None and given[parameter] is not False:
            raise click.UsageError(f"{flag} does not go with --stack." if stack else f"{flag} needs --stack.")


def _verified(store: Store, name: str | None, given: Mapping[str, Any]) -> Verified | StackVerified:
    shared = {part: given[part] for part in ("model", "dtype", "module", "device")}
    shared["gates"] = {score: given[flag] / 100 for flag, score in _GATES.items() if given[flag] is not None}
    shared["record"] = not given["no_record"]
    if name is not None:
        return store.verify(name, suite=given["suite"], in_stack=given["in_stack"], **shared)
    limits = {flag: None if given[flag] is None else given[flag] / 100 for flag in ("max_loss", "max_drift")}
    return store.verify_stack(
        baseline=not given["no_baseline"], drift=not given["no_drift"], drift_file=given["drift"], **limits, **shared
    )


def _text(found: Verified | StackVerified, worst: int) -> str:
    from rompatch.cli.verify_text import patch_text, stack_text
    from rompatch.workflows.stack_report import StackVerified

    return stack_text(found, worst) if isinstance(found, StackVerified) else patch_text(found, worst)
