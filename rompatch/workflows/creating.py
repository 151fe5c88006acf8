"""create: one edit request in, one recorded patch out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.edits import EditRequest, same_text
from rompatch.errors import RequestError
from rompatch.patch import BaseRef, PatchHeader
from rompatch.store.patches import base_id
from rompatch.store.records import PatchRecord, RevisionRecord
from rompatch.workflows import existing, stacking
from rompatch.workflows.author import author
from rompatch.workflows.opened import BaseSpec, OpenStore
from rompatch.workflows.precision import resolve_precision, wanted_precision
from rompatch.workflows.statistics import AUTOMATIC, statistics_for
from rompatch.workflows.wording import Wording, choose_template

if TYPE_CHECKING:
    from rompatch.compute.methods.rome import RomeHparams
    from rompatch.models import Base
    from rompatch.patch import Patch
    from rompatch.workflows.presets import Preset

METHOD = "rome"
FROM_USER, FROM_ATLAS, FROM_MODEL = "given", "atlas", "the model's own answer"


@dataclass(frozen=True)
class CreateOptions:
    """What ``create`` may be told; None leaves it to the preset.

    Args:
        true: o^c, the object that is true now; asked of the atlas, then of the model, where it is not given.
        prompt: the template itself, instead of the relation phrase.
        spec: the base, where it is not the store's (``Store.base_spec``).
        layer, seed, document_start, hparams: as in :mod:`rompatch.compute.methods.rome`; *hparams* by name.
        statistics: "auto", "none" or an id of key statistics.
        precision: "auto" or the dtype of the products while v* is optimised.
        preset: a preset file.
        apply: put the patch onto the stack as well.
        dry_run: plan only: nothing is computed and nothing is written.
        again: compute even if a patch for the same request with the same settings exists.
        message: for the ledger.
    """

    true: str | None = None
    prompt: str | None = None
    spec: BaseSpec | None = None
    device: str = "cpu"
    layer: int | None = None
    seed: int = 0
    document_start: bool | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    statistics: str = AUTOMATIC
    precision: str = AUTOMATIC
    preset: Path | None = None
    apply: bool = False
    dry_run: bool = False
    again: bool = False
    message: str | None = None


@dataclass(frozen=True)
class Plan:
    """What an edit request came to, before anything is computed."""

    request: EditRequest
    true_source: str | None
    wordings: tuple[Wording, ...]
    base: BaseRef
    layer: int
    parameter: str
    document_start: bool
    hparams: RomeHparams
    preset: str
    existing: tuple[PatchRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "request": self.request.to_json(),
            "true_source": self.true_source,
            "templates": [{"template": w.template, "log_likelihood": w.log_likelihood} for w in self.wordings],
            "base": vars(self.base),
            "layer": self.layer,
            "parameter": self.parameter,
            "document_start": self.document_start,
            "hparams": vars(self.hparams),
            "preset": self.preset,
            "existing": [record.id for record in self.existing],
        }


@dataclass(frozen=True)
class Created:
    """The outcome: the plan, and the patch with its record; without them nothing was computed (``dry_run``).

    ``is_new`` is False where a patch for the same request and settings existed and was returned instead. ``revision``
    is set where the patch was applied.
    """

    plan: Plan
    record: PatchRecord | None = None
    is_new: bool = False
    revision: RevisionRecord | None = None

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
        }


def create(store: OpenStore, subject: str, relation: str, target: str, options: CreateOptions | None = None) -> Created:
    """Compute a ROME patch that makes the model say *target* for *subject* and *relation*, save it, record it. Writes.

    The file is written first (durably), then the ledger's row: a crash in between leaves a file that ``fsck`` names.

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
    _check_early(subject, relation, target, options)
    spec = options.spec or store.base_spec()
    base = store.base(spec, device=options.device)
    plan = make_plan(store, base, subject, relation, target, options)
    header = planned_header(base, plan, options)
    same = existing.made_so(plan.existing, header, options.statistics, options.true)
    if options.apply and (same is None or options.again):
        existing.check_apply(store, header)
    if options.dry_run:
        return Created(plan)
    if same is not None and not options.again:
        return _applied(store, Created(plan, same), options)
    for other in (record for record in plan.existing if record != same):
        store.reporter.note(existing.difference(other, plan.request))
    patch, measurements = _compute(store, base, plan, options)
    with store.ledger.transaction():  # file first, then the row; no fsck or rm gets in between
        path = store.blobs.put(patch)
        store.remember_base(spec)  # not before: a create that fails leaves nothing
        record = store.ledger.add_patch(
            patch.header,
            patch_id=patch.id,
            file_size=path.stat().st_size,
            measurements=measurements,
            author=author(),
            message=options.message,
        )
        store.remember_spec(record.base_id, spec)
    return _applied(store, Created(plan, record, is_new=True), options)


def make_plan(store: OpenStore, base: Base, subject: str, relation: str, target: str, options: CreateOptions) -> Plan:
    """Everything that is decided before computing: template, true object, layer, hyper-parameters, what exists."""
    from rompatch.workflows.presets import preset_for

    preset: Preset = preset_for(base, options.preset)
    document_start = preset.document_start if options.document_start is None else options.document_start
    phrase = options.prompt or relation
    wordings = choose_template(base, subject, phrase, document_start=document_start)
    is_phrase = options.prompt is None and "{}" not in relation
    request = EditRequest(subject, wordings[0].template, target, options.true, relation if is_phrase else None)
    request, true_source = with_true_object(base, request, document_start)
    hparams = sound_hparams({**preset.hparams, **options.hparams})
    layer = next((one for one in (options.layer, preset.layer) if one is not None), base.preset_layer)
    site = base.site(layer)
    wanted = wanted_precision(options.precision, vars(hparams))
    hparams = replace(hparams, precision=resolve_precision(base, site, wanted, store.reporter))
    return Plan(
        request=request,
        true_source=true_source,
        wordings=wordings,
        base=base.ref(),
        layer=layer,
        parameter=site.parameter_name,
        document_start=document_start,
        hparams=hparams,
        preset=preset.source,
        existing=existing.on_same_fact(store, base_id(base.ref()), request),
    )


def sound_hparams(given: Mapping[str, Any]) -> RomeHparams:
    """The hyper-parameters *given*, the method's defaults for the others.

    Raises:
        RequestError: there is no such hyper-parameter, or its value is none.
    """
    from rompatch.compute.methods.rome import RomeHparams

    try:
        return RomeHparams(**given)
    except TypeError as problem:
        raise RequestError(f"There is no such hyper-parameter: {problem}.", found=sorted(given)) from problem


def planned_header(base: Base, plan: Plan, options: CreateOptions) -> PatchHeader:
    """The header of the patch to be made, as far as it is known before computing: no contexts, no statistics."""
    return PatchHeader(
        method=METHOD,
        hparams=vars(plan.hparams),
        request=plan.request,
        base=plan.base,
        sites=(base.site(plan.layer).ref(),),
        contexts=(),
        seed=options.seed,
        document_start=plan.document_start,
        statistics=None,
    )


def with_true_object(base: Base, request: EditRequest, document_start: bool) -> tuple[EditRequest, str | None]:
    """The request with o^c: as given, else from the atlas, else the model's own greedy answer; and where it is from."""
    from rompatch.verify.building import true_object_of

    if request.target_true is not None:
        return request, FROM_USER
    known = true_object_of(request)
    if known is not None:
        return replace(request, target_true=known), FROM_ATLAS
    answer = own_answer(base, request.prompt, document_start)
    if not answer or same_text(answer, request.target_new):
        return request, None
    return replace(request, target_true=answer), FROM_MODEL


def own_answer(base: Base, prompt: str, document_start: bool, n_tokens: int = 8) -> str:
    """What the model says after *prompt*: its greedy continuation up to the first punctuation mark."""
    from rompatch.verify.generation import generate

    text = generate(base.model, base.tokenizer, [prompt], document_start=document_start, max_new_tokens=n_tokens)[0]
    words = text.strip().split("\n")[0]
    for mark in '.,;:!?()"':
        words = words.split(mark)[0]
    return words.strip()


def probabilities(base: Base, request: EditRequest, document_start: bool) -> dict[str, float | None]:
    """P of new and true object after the request's prompt (geometric mean over an object's tokens)."""
    import math

    from rompatch.verify.probabilities import score_prompts

    targets = [target for target in (request.target_new, request.target_true) if target is not None]
    pairs = [(request.prompt, target) for target in targets]
    scored = score_prompts(base.model, base.tokenizer, pairs, document_start=document_start)
    values = [math.exp(score.mean_logprob) for score in scored]
    return {"new": values[0], "true": values[1] if len(values) > 1 else None}


def _compute(store: OpenStore, base: Base, plan: Plan, options: CreateOptions) -> tuple[Patch, dict[str, Any]]:
    from rompatch.apply.session import PatchedModel
    from rompatch.compute.contexts import sample_contexts
    from rompatch.compute.methods import METHODS
    from rompatch.compute.methods.base import Stopwatch

    site = base.site(plan.layer)
    watch = Stopwatch()
    with watch.phase("statistics"):
        statistics = statistics_for(base, site, options.statistics, options.seed, store.reporter)
    with watch.phase("contexts"):
        contexts = sample_contexts(base.model, base.tokenizer, options.seed)
    computation = METHODS[METHOD].compute(
        base,
        plan.request,
        site=site,
        contexts=contexts,
        statistics=statistics,
        hparams=plan.hparams,
        seed=options.seed,
        document_start=plan.document_start,
        notify=store.reporter.step,
    )
    if not computation.measurements["replayed"]:
        store.reporter.note(f"{base.model_type} cannot be replayed: used the plain loop, which is slower")
    with watch.phase("check"):
        before = probabilities(base, plan.request, plan.document_start)
        with PatchedModel(base) as patched:
            patched.activate([computation.patch])
            after = probabilities(base, plan.request, plan.document_start)
    seconds = {**watch.seconds, **computation.measurements["seconds"]}
    found = {"before": before, "after": after, "true_source": plan.true_source}
    return computation.patch, {**computation.measurements, "probabilities": found, "seconds": seconds}


def _applied(store: OpenStore, created: Created, options: CreateOptions) -> Created:
    if not options.apply or created.record is None:
        return created
    if created.record.id in {record.id for record in store.active()}:
        return created
    return replace(created, revision=stacking.apply(store, [created.record.id], message=options.message))


def _check_early(subject: str, relation: str, target: str, options: CreateOptions) -> None:
    """What can be refused before the model is loaded."""
    sound_hparams(options.hparams)
    EditRequest(subject, relation if "{}" in relation and options.prompt is None else "{}", target, options.true)
    if not relation.strip() and options.prompt is None:
        raise RequestError(
            "The relation is empty.", next_step='Say what the fact is about: "located in", or "The {} is located in".'
        )
    if options.prompt is not None and "{}" not in options.prompt and subject in options.prompt:
        raise RequestError(
            f"The prompt {options.prompt!r} names the subject itself.",
            expected="{} in its place",
            next_step=f"--prompt {options.prompt.replace(subject, '{}', 1)!r}",
        )
    if options.prompt is not None:
        EditRequest(subject, options.prompt, target)
