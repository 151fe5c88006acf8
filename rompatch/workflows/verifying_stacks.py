"""verify --stack: every patch of the active stack on the finished model, against what each scored alone, and drift."""

from __future__ import annotations

import time

from rompatch.errors import ConflictError, RequestError
from rompatch.store.records import StackRecord
from rompatch.workflows.gates import check_limits
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.stack_recording import record_scored, report
from rompatch.workflows.stack_report import StackVerified
from rompatch.workflows.stack_scoring import Loaded, StackVerifyOptions, drift_text, load_stack, score_stack


def verify_stack(store: OpenStore, options: StackVerifyOptions | None = None) -> StackVerified:
    """Score every patch of the stack in force on the finished model. Writes one run to the ledger, and one for each
    patch that was scored alone (unless told not to), all of them at the end or none.

    Raises:
        ConflictError: the stack is empty.
        StoreError, PatchFileError: a patch's file is missing or damaged.
        BaseMismatchError: the loaded base is not the patches'.
        SuiteError: the text for drift cannot be read, or a suite does not fit the model.
        ComputeError: the finished model answers NaN.
        RequestError: a gate that is out of range, or cannot be told.
    """
    options = options or StackVerifyOptions()
    _check(options)
    text = drift_text(options)
    loaded = _load(store)
    options.base_of(store, loaded.records)  # loading it is not scoring
    started = time.monotonic()
    scored = score_stack(store, loaded, options, text)
    seconds = time.monotonic() - started
    run, newest, checks = None, _newest(store, loaded.stack), scored.checks
    if options.record:
        with store.ledger.transaction():
            newest = _newest(store, loaded.stack)
            run, checks = record_scored(store, loaded, scored, newest)
    if newest != loaded.stack.revision:
        store.reporter.note(
            f"stack {loaded.stack.name} was changed meanwhile: scored at revision {loaded.stack.revision}, "
            f"now at {newest}"
        )
    return report(loaded, scored, checks, run, newest, seconds)


def _check(options: StackVerifyOptions) -> None:
    check_limits(options.gates, options.max_loss, options.max_drift)
    if not options.drift and (options.max_drift is not None or options.drift_file is not None):
        raise RequestError(
            "Drift is not measured, so there is nothing to compare or to read.",
            expected="either no drift, or a greatest drift and a text for it",
            next_step="Leave one of them out.",
        )


def _load(store: OpenStore) -> Loaded:
    """Every file is read and checked here, before a model is loaded."""
    stack = store.stack()
    records = () if stack is None else store.ledger.members(stack, stack.revision)
    if stack is None or not records:
        raise ConflictError("The stack is empty, so there is nothing to verify.", next_step="Apply a patch first.")
    return load_stack(store, stack, records)


def _newest(store: OpenStore, stack: StackRecord) -> int:
    return store.ledger.stack(stack.name).revision
