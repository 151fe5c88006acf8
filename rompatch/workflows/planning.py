"""From a fact to a plan: the prompt's wording, the true object, and what the store has already. Nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rompatch.edits import EditRequest, same_text
from rompatch.facts.fact import Fact
from rompatch.patch import BaseRef
from rompatch.store.records import PatchRecord
from rompatch.workflows import existing
from rompatch.workflows.method_options import EditSetting
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.wording import Wording, choose_template

if TYPE_CHECKING:
    from rompatch.compute.methods.rome_hparams import RomeHparams
    from rompatch.models import Base

FROM_USER, FROM_ATLAS, FROM_MODEL = "given", "atlas", "the model's own answer"


@dataclass(frozen=True)
class Plan:
    """What an edit request came to, before anything is computed."""

    request: EditRequest
    true_source: str | None
    wordings: tuple[Wording, ...]
    base: BaseRef
    layers: tuple[int, ...]
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
            "layer": self.layers[0],
            "layers": list(self.layers),
            "parameter": self.parameter,
            "document_start": self.document_start,
            "hparams": vars(self.hparams),
            "preset": self.preset,
            "existing": [record.id for record in self.existing],
        }


def plan_fact(store: OpenStore, setting: EditSetting, fact: Fact) -> Plan:
    """Everything that is decided before computing: template, true object, layer, hyper-parameters, what exists.

    Raises:
        RequestError: the fact cannot be carried out on this base (its subclasses say why).
    """
    wordings = choose_template(setting.base, fact.subject, fact.wording, document_start=setting.document_start)
    request = EditRequest(fact.subject, wordings[0].template, fact.target, fact.true, fact.phrase)
    return plan_request(store, setting, request, wordings)


def plan_request(
    store: OpenStore, setting: EditSetting, request: EditRequest, wordings: tuple[Wording, ...] = ()
) -> Plan:
    """The plan of a request whose template is chosen."""
    request, true_source = with_true_object(setting.base, request, setting.document_start)
    return Plan(
        request=request,
        true_source=true_source,
        wordings=wordings or (Wording(request.template, None),),
        base=setting.base.ref(),
        layers=setting.layers,
        parameter=setting.site.parameter_name,
        document_start=setting.document_start,
        hparams=setting.hparams,
        preset=setting.preset,
        existing=existing.on_same_fact(store, setting.base_id, request),
    )


def made_before(store: OpenStore, setting: EditSetting, fact: Fact) -> PatchRecord | None:
    """A patch that these settings made of *fact*, found without asking the model: the same phrase leads to the same
    wording, and to the same true object."""
    for record in store.ledger.patches(fact.subject, base_id=setting.base_id):
        known = record.header.request
        if known is None:
            continue
        asked = known.relation if fact.phrase is not None else known.template
        if asked is None or not same_text(asked, fact.wording):
            continue
        header = setting.header(replace(known, target_new=fact.target, target_true=None))
        if existing.made_so([record], header, setting.statistics, fact.true):
            return record
    return None


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
