"""rebase: every patch of a stack computed again for another base, and the new ones put onto a stack of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rompatch.errors import ConflictError, PatchNotFoundError, RompatchError, StoreError
from rompatch.store.patches import base_id
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord
from rompatch.store.stack_rows import check_stack_name
from rompatch.workflows import existing
from rompatch.workflows.author import author
from rompatch.workflows.computing import compute_plans, score_objects, workshop
from rompatch.workflows.keeping import keep
from rompatch.workflows.likeness import setting_like
from rompatch.workflows.method_options import EditSetting
from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.planning import Plan, own_answer, plan_request
from rompatch.workflows.rebased import (
    EXISTED,
    FAILED,
    KNOWN,
    MADE,
    PLANNED,
    Answer,
    Rebased,
    RebasedPatch,
    RebaseOptions,
)
from rompatch.workflows.side_by_side import with_scores

if TYPE_CHECKING:
    from rompatch.models import Base

Work = tuple[RebasedPatch, EditSetting, Plan]

_NOT_IN_NAMES = re.compile(r"[^\w.+-]+")


def rebase(store: OpenStore, onto: str, options: RebaseOptions | None = None) -> Rebased:
    """Recompute a stack's patches for the base *onto*; put them onto a new stack as one revision. Writes; the old stack
    stays as it is. Each patch is committed as it comes, and the same call goes on from what is done.

    The new base is asked each fact first; what it says already is listed and left out (``keep_known``: not left out).
    Patches that fail are outcomes, not errors.

    Args:
        onto: a folder, a .gguf file, an alias or a hub id.

    Raises:
        PatchNotFoundError: there is no such stack.
        ConflictError: the stack is empty or on that base already, or ``into`` is a stack of another base.
        ModelError, StatisticsError: the new base cannot be loaded, or statistics cannot be used.
        StoreError: no stack can be called ``into``.
        StoreError, OutputError: nothing more can be written; what was made stays.
    """
    options = options or RebaseOptions()
    if options.into is not None:
        check_stack_name(options.into)  # not after hours of computing
    stack, members = _old(store, options)
    spec = store.base_spec(onto, options.dtype, options.module)
    options = replace(options, spec=spec)
    base = store.base(spec, device=options.device)
    into = _into(store, stack, base, options)
    found = [_asked(base, record, options) for record in members]
    if not options.dry_run:
        found = _recomputed(store, spec, found, options)
        found = with_scores(store, base, found, options) if options.scores else found
    revision = None if options.dry_run else _stacked(store, into, base, found, options)
    return Rebased(stack.name, members[0].header.base, base.ref(), into, tuple(found), revision)


def _old(store: OpenStore, options: RebaseOptions) -> tuple[StackRecord, tuple[PatchRecord, ...]]:
    stack = store.stack() if options.stack is None else store.ledger.stack(options.stack)
    members = () if stack is None else store.ledger.members(stack)
    if stack is None or not members:
        raise ConflictError("The stack is empty, so there is nothing to rebase.", next_step="Apply a patch first.")
    return stack, members


def _into(store: OpenStore, stack: StackRecord, base: Base, options: RebaseOptions) -> str:
    """The name of the new stack, if it may be used.

    Raises:
        ConflictError: the old stack is on that base, or a stack of that name is on another.
    """
    ref = base.ref()
    if stack.base_id == base_id(ref):
        raise ConflictError(
            f"Stack {stack.name!r} is on the base {ref.source!r} already.",
            next_step="Name another model with --onto; `rompatch create --like ID` computes single patches again.",
        )
    name = options.into or _NOT_IN_NAMES.sub("-", f"{stack.name}-on-{ref.source}")[:100]
    try:
        there = store.ledger.stack(name)
    except PatchNotFoundError:
        return name
    if there.base_id != base_id(ref):
        raise ConflictError(
            f"The stack {name!r} exists and is on another base than {ref.source!r}.",
            next_step="Choose another name with --into.",
        )
    return name


def _asked(base: Base, record: PatchRecord, options: RebaseOptions) -> RebasedPatch:
    """What the new base says to the fact of *record*."""
    try:
        answer = ask(base, record)
    except RompatchError as problem:
        return RebasedPatch(record, FAILED, error=problem)
    return RebasedPatch(record, KNOWN if answer.knows and not options.keep_known else PLANNED, answer=answer)


def ask(base: Base, record: PatchRecord) -> Answer:
    """The base's own answer to the request of *record*.

    Raises:
        RequestError: the patch answers no request.
        TargetError, SuiteError, ComputeError: the prompt cannot be scored on this base.
    """
    request, document_start = record.request, record.header.document_start
    new, true = score_objects(base, request, document_start)
    return Answer(
        text=own_answer(base, request.prompt, document_start),
        new=math.exp(new.mean_logprob),
        true=None if true is None else math.exp(true.mean_logprob),
        knows=new.exact,
    )


def _recomputed(
    store: OpenStore, spec: BaseSpec, found: Sequence[RebasedPatch], options: RebaseOptions
) -> list[RebasedPatch]:
    """*found* with the patches that had to be computed; those of equal settings together."""
    done = {one.old.id: one for one in found}
    work: list[Work] = []
    for one in found:
        if one.status == PLANNED:
            planned = _planned(store, one, options)
            if isinstance(planned, RebasedPatch):
                done[one.old.id] = planned
            else:
                work.append(planned)
    total, n_done = len(found), len(found) - len(work)
    store.reporter.overall("patches", n_done, total)
    for group in _alike(work):
        shop = workshop(group[0][1], store.reporter)
        for index, computed in compute_plans(shop, [plan for _, _, plan in group], store.reporter):
            one = group[index][0]
            if isinstance(computed, RompatchError):
                done[one.old.id] = replace(one, status=FAILED, error=computed)
            else:
                old = one.old
                about = {"message": old.message, "source": old.source, "expires_at": old.expires_at}
                done[old.id] = replace(one, status=MADE, new=keep(store, computed, spec, **about))
            n_done += 1
            store.reporter.overall("patches", n_done, total)
    return [done[one.old.id] for one in found]


def _planned(store: OpenStore, one: RebasedPatch, options: RebaseOptions) -> Work | RebasedPatch:
    try:
        setting = setting_like(store, one.old, options)
        plan = plan_request(store, setting, one.old.request)
    except RompatchError as problem:
        if isinstance(problem, StoreError) and not isinstance(problem, ConflictError):
            raise
        return replace(one, status=FAILED, error=problem)
    header = setting.header(plan.request)
    same = existing.made_so(plan.existing, header, setting.statistics, one.old.request.target_true)
    return (one, setting, plan) if same is None else replace(one, status=EXISTED, new=same)


def _alike(work: Sequence[Work]) -> Iterator[list[Work]]:
    """The same in groups of equal settings: one pass of statistics and contexts, and batches."""
    groups: dict[str, list[Work]] = {}
    for one in work:
        setting = one[1]
        facts = (setting.site.parameter_name, sorted(vars(setting.hparams).items()), setting.seed)
        key = repr((*facts, setting.document_start, setting.statistics))
        groups.setdefault(key, []).append(one)
    yield from groups.values()


def _stacked(
    store: OpenStore, into: str, base: Base, found: Sequence[RebasedPatch], options: RebaseOptions
) -> RevisionRecord | None:
    """The new patches on the stack *into*, as one revision; None where nothing was left to do."""
    new = [one.new.id for one in found if one.new is not None]
    if not new:
        return None
    with store.ledger.transaction() as ledger:
        try:
            stack = ledger.stack(into)
        except PatchNotFoundError:
            stack = ledger.create_stack(into, base_id(base.ref()), author=author(), message=options.message)
        active = set(ledger.member_ids(stack))
        missing = [patch_id for patch_id in dict.fromkeys(new) if patch_id not in active]
        if not missing:
            return None
        about = {"message": options.message, "reason": options.reason, "author": author()}
        return ledger.push(stack, missing, **about)
