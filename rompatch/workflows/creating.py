"""create: one edit request in, one recorded patch out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rompatch.errors import RompatchError
from rompatch.facts.fact import Fact
from rompatch.store.records import PatchRecord, RevisionRecord
from rompatch.workflows import existing, stacking
from rompatch.workflows.computing import Computed, compute_plans, workshop
from rompatch.workflows.conflicts import contradictions
from rompatch.workflows.keeping import keep
from rompatch.workflows.method_options import EditSetting, RecordingOptions, check_method, edit_setting
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.planning import Plan, plan_fact
from rompatch.workflows.provenance import checked_expiry


@dataclass(frozen=True)
class CreateOptions(RecordingOptions):
    """What ``create`` may be told beside base, method and records.

    Args:
        true: o^c, the object that is true now; asked of the atlas, then of the model, where it is not given.
        prompt: the template itself, instead of the relation phrase.
    """

    true: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Created:
    """The outcome: the plan, and the patch with its record; without them nothing was computed (``dry_run``).

    ``is_new`` is False where a patch for the same request and settings existed and was returned instead. ``revision``
    is set where the patch was applied. ``active``: whether it is on the stack in force now; if not, ``contradicted``
    are the patches there that it would have to supersede.
    """

    plan: Plan
    record: PatchRecord | None = None
    is_new: bool = False
    revision: RevisionRecord | None = None
    active: bool = False
    contradicted: tuple[PatchRecord, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        record = self.record
        return {
            "plan": self.plan.to_json(),
            "id": None if record is None else record.id,
            "is_new": self.is_new,
            "measurements": None if record is None else dict(record.measurements),
            "statistics": None
            if record is None or record.header.statistics is None
            else vars(record.header.statistics),
            "applied_as_revision": None if self.revision is None else self.revision.number,
            "active": self.active,
            "contradicts": [active.id for active in self.contradicted],
        }


def create(store: OpenStore, subject: str, relation: str, target: str, options: CreateOptions | None = None) -> Created:
    """Compute a ROME patch that makes the model say *target* for *subject* and *relation*, save it, record it. Writes.

    Args:
        relation: a phrase ("located in") or a template with ``{}``.

    Raises:
        RequestError: the request cannot be carried out as written (its subclasses say why).
        ModelError: the base cannot be loaded.
        ComputeError, StatisticsError: the computation failed.
        StoreError, OutputError: it could not be saved.
        ConflictError, BaseMismatchError: with ``apply``, the active stack would not take it; nothing is computed.
    """
    options = options or CreateOptions()
    fact = Fact(subject, relation, target, options.true, options.prompt)
    check_method(options)  # before the model is loaded
    fact.check()
    checked_expiry(options.expires)
    setting = edit_setting(store, options)
    return carry_out(store, setting, plan_fact(store, setting, fact), options)


def carry_out(store: OpenStore, setting: EditSetting, plan: Plan, options: CreateOptions) -> Created:
    """Do what *plan* says, as far as it is not done yet. Writes."""
    header = setting.header(plan.request)
    same = existing.made_so(plan.existing, header, setting.statistics, options.true)
    if options.apply and (same is None or options.again):
        existing.check_apply(store, header)
    if options.dry_run:
        return Created(plan)
    if same is not None and not options.again:
        _note_unrecorded(store, same, options)
        return _applied(store, Created(plan, same), options)
    for other in (record for record in plan.existing if record != same):
        store.reporter.note(existing.difference(other, plan.request))
    computed = _computed(store, setting, plan)
    record = keep(
        store,
        computed,
        options.spec or store.base_spec(),
        message=options.message,
        source=options.source,
        expires_at=options.expires,
    )
    return _applied(store, Created(plan, record, is_new=True), options)


def _note_unrecorded(store: OpenStore, same: PatchRecord, options: CreateOptions) -> None:
    """A patch that exists keeps what was said of it when it was made."""
    given = [name for name in ("message", "source", "expires") if getattr(options, name) is not None]
    if given:
        store.reporter.note(
            f"patch {same.label} exists and keeps its own {', '.join(given)}; `rompatch apply` with --source or "
            "--expires changes those"
        )


def _computed(store: OpenStore, setting: EditSetting, plan: Plan) -> Computed:
    ((_, outcome),) = compute_plans(workshop(setting, store.reporter), [plan], store.reporter)
    if isinstance(outcome, RompatchError):
        raise outcome
    return outcome


def _applied(store: OpenStore, created: Created, options: CreateOptions) -> Created:
    record = created.record
    if record is None:
        return created
    stack = store.stack()
    if stack is not None and record.id in store.ledger.member_ids(stack):
        return replace(created, active=True)
    if options.apply:
        revision = stacking.apply(store, [record.id], message=options.message, reason=options.reason)
        return replace(created, revision=revision, active=True)
    rivals = () if stack is None else store.ledger.rivals(stack, [record])
    return replace(created, contradicted=tuple(old for _, old in contradictions([record], rivals)))
