"""Suites scored before and after edits, with the least work that the base's dtype allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.verify.evaluation import Evaluation
    from rompatch.verify.suite import Suite
    from rompatch.verify.updates import Edit

Progress = Callable[[int, int], None]

_EXACT = "float32"
"""In this dtype an edit as a term beside the weights gives what edited weights give; in half precision the edited
weight is rounded, and only the edited weight says by how much."""


def before_and_after(
    base: Base,
    suites: Sequence[Suite],
    edits: Sequence[Sequence[Patch]],
    *,
    document_start: bool,
    on_progress: Progress | None = None,
) -> list[tuple[Evaluation, Evaluation]]:
    """``suites[i]`` on *base* and with the patches ``edits[i]`` together, and with no others.

    In float32 all run side by side, and layers below the edits once; in half precision the edited weights are scored,
    one edit at a time.

    Raises:
        BaseMismatchError, SiteError: a patch was computed for another base; nothing is scored then.
        TargetError, SuiteError, ComputeError: a prompt cannot be scored.
    """
    from rompatch.apply.session import PatchedModel
    from rompatch.verify.evaluation import evaluate_batch

    try_out(base)
    patches = [patch for edit in edits for patch in edit]
    with PatchedModel(base) as patched:
        patched.activate(patches)  # every fingerprint is checked before anything is scored
        patched.restore()
        if _is_exact(base, patches):
            return evaluate_batch(
                base.model,
                base.tokenizer,
                suites,
                [_terms(base.model, edit) for edit in edits],
                document_start=document_start,
                on_progress=on_progress,
            )
        before = evaluate_side_by_side(base.model, base.tokenizer, suites, document_start, on_progress)
        after = []
        for suite, edit in zip(suites, edits, strict=True):
            patched.activate(edit)
            after += evaluate_side_by_side(base.model, base.tokenizer, [suite], document_start, on_progress)
    return list(zip(before, after, strict=True))


def evaluate_side_by_side(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suites: Sequence[Suite],
    document_start: bool,
    on_progress: Progress | None = None,
) -> list[Evaluation]:
    """All of *suites* on *model* as it is, in as few batches as they fit into; equal prompts run once.

    Raises:
        TargetError, SuiteError, ComputeError: a prompt cannot be scored.
    """
    from rompatch.verify.evaluation import evaluate_batch

    no_edits: list[Edit] = [()] * len(suites)
    pairs = evaluate_batch(model, tokenizer, suites, no_edits, document_start=document_start, on_progress=on_progress)
    return [before for before, _ in pairs]


def try_out(base: Base) -> None:
    """Find out now what the model can do, however little is to be scored: else short suites would be scored in another
    layout the first time than later, and the last digits of two runs in one process would differ."""
    from rompatch.tokens import pad_id
    from rompatch.verify.abilities import abilities_of

    abilities_of(base.model, pad_id(base.tokenizer))


def _is_exact(base: Base, patches: Iterable[Patch]) -> bool:
    return base.dtype == _EXACT and all(site.dtype == _EXACT for patch in patches for site in patch.header.sites)


def _terms(model: PreTrainedModel, edit: Sequence[Patch]) -> Edit:
    """The joint solution of the patches as terms beside the weights."""
    from rompatch.apply.solve import solve_stack
    from rompatch.sites import site_of_parameter
    from rompatch.verify.updates import SiteTerm

    refs = {site.parameter: site for patch in edit for site in patch.header.sites}
    updates = solve_stack(edit)
    return [
        SiteTerm.of(site_of_parameter(model, refs[parameter]), update.left, update.right)
        for parameter, update in updates.items()
    ]
