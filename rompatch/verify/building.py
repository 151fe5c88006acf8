"""Suites made from an edit request, through the atlas, or from a file. Deterministic; no torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rompatch.edits import EditRequest, same_text
from rompatch.errors import SuiteError
from rompatch.verify.atlas.matching import known_object, match_relation, wording_similarity
from rompatch.verify.atlas.table import (
    ARTICLE,
    Fact,
    Relation,
    bare_subject,
    fill_template,
    same_object,
    template_has_article,
)
from rompatch.verify.jsonfile import read_json
from rompatch.verify.records import CounterfactRecord
from rompatch.verify.suite import Kind, Prompt, Suite
from rompatch.verify.zsre import Taught, ZsreRecord

_NEAR_TEMPLATES = 5
"""Neighbours are asked in the wordings nearest to the edited prompt: that is where an edit does its damage."""

_COUNTERFACT_KINDS: dict[str, Kind] = {
    "paraphrase_prompts": "paraphrase",
    "neighborhood_prompts": "neighbourhood",
    "attribute_prompts": "attribute",
    "generation_prompts": "generation",
}


def relation_of(request: EditRequest) -> Relation | None:
    """The atlas relation that *request* is about: by the phrase the user typed, else by the template."""
    objects = tuple(name for name in (request.target_new, request.target_true) if name is not None)
    for wording in (request.relation, request.template):
        relation = match_relation(wording, request.subject, objects) if wording else None
        if relation is not None:
            return relation
    return None


def true_object_of(request: EditRequest) -> str | None:
    """o^c: as the request says, else what the atlas knows about its subject, else None."""
    if request.target_true is not None:
        return request.target_true
    relation = relation_of(request)
    known = known_object(relation, request.subject) if relation else None
    return None if known is None or same_object(known, request.target_new) else known


def suite_for(
    request: EditRequest, limit_neighbours: int = 10, limit_paraphrases: int = 10, limit_attributes: int = 5
) -> Suite:
    """The suite that the atlas can offer for an ad-hoc edit.

    The rewrite prompt is the request's own. With a relation of the atlas, paraphrases are its other templates;
    neighbours are other subjects with the same true object, then others of the relation with their own true object
    (never one whose object is o*); attribute prompts are subjects that truly have o*. What could not be tested is
    said in ``untested``.
    """
    relation, true = relation_of(request), true_object_of(request)
    prompts = [Prompt("rewrite", request.prompt, request.target_new, true)]
    untested = [] if true is not None else [_no_true_object(request)]
    name = f"{request.subject}: {request.relation or request.template} -> {request.target_new}"
    if relation is None:
        return Suite(name, "request", tuple(prompts), (*untested, _no_relation(request)))
    prompts += [
        Prompt("paraphrase", text, request.target_new, true)
        for text in _paraphrases(request, relation)[:limit_paraphrases]
    ]
    neighbours = _neighbours(request, relation, true)[:limit_neighbours]
    prompts += _asked(request, relation, "neighbourhood", [(fact, fact.object) for fact in neighbours])
    if true is not None:
        having = [fact for fact in relation.facts if _is_about(fact, request, request.target_new)]
        prompts += _asked(request, relation, "attribute", [(fact, true) for fact in having[:limit_attributes]])
        if not any(same_object(fact.object, true) for fact in neighbours):
            untested.append(
                f"the atlas has no other subject whose {relation.title} is {true!r}: "
                "the neighbourhood has subjects with other objects only"
            )
    return Suite(name, f"atlas:{relation.id}", tuple(prompts), tuple(untested))


def suite_from_counterfact(record: CounterfactRecord | Mapping[str, Any]) -> Suite:
    """The suite of one COUNTERFACT record, or of its JSON object.

    Raises:
        SuiteError: the record is malformed; the message names record and field.
    """
    checked = record if isinstance(record, CounterfactRecord) else CounterfactRecord.from_json(record)
    request = checked.request
    true = request.target_true
    prompts = [Prompt("rewrite", request.prompt, request.target_new, true)]
    untested = []
    for field, kind in _COUNTERFACT_KINDS.items():
        texts = getattr(checked, field)
        prompts += [Prompt(kind, text, request.target_new, true) for text in texts]
        if not texts and kind in ("paraphrase", "neighbourhood"):
            untested.append(f"the record has no {field}: {kind} not tested")
    name = f"{request.subject}: {request.template} -> {request.target_new}"
    return Suite(name, checked.name, tuple(prompts), tuple(untested))


def suite_from_zsre(record: ZsreRecord, teach: Taught = "answer") -> Suite:
    """The suite of one zsRE record, for an edit that teaches what *teach* says: the question, its rephrasing, and the
    unrelated question, which must keep its answer. There is no true object, so success is counted in exact tokens.
    """
    new = record.request(teach).target_new
    prompts = (
        Prompt("rewrite", record.question, new, None),
        Prompt("paraphrase", record.rephrase, new, None),
        Prompt("neighbourhood", record.locality_prompt, new, record.locality_answer),
    )
    untested = ("zsRE records have no true object to compare with: ES and PS not scored; see exact success",)
    return Suite(f"{record.subject}: {record.template} -> {new}", record.name, prompts, untested)


def load_suite(path: Path | str) -> Suite:
    """A suite from a file: one COUNTERFACT record, a list with one record, or rompatch's own form.

    Raises:
        SuiteError: the file cannot be read, is none of these, or holds several records.
    """
    data = read_json(path)
    if isinstance(data, list):
        if len(data) != 1:
            raise SuiteError(
                f"The suite file {str(path)!r} must be about one edit.",
                expected="one record",
                found=f"a list of {len(data)}",
                next_step="Put the record that belongs to your edit into a file of its own.",
            )
        data = data[0]
    if isinstance(data, Mapping) and "rompatch_suite" in data:
        return Suite.from_json(data)
    if isinstance(data, Mapping) and "requested_rewrite" in data:
        return suite_from_counterfact(data)
    raise SuiteError(
        f"The suite file {str(path)!r} holds no suite.",
        expected='an object with "requested_rewrite" (COUNTERFACT) or "rompatch_suite"',
        found=sorted(data)[:8] if isinstance(data, Mapping) else type(data).__name__,
    )


def _paraphrases(request: EditRequest, relation: Relation) -> list[str]:
    """The relation's other templates, filled with the request's subject, the request's own wording left out."""
    fact = relation.by_subject.get(bare_subject(request.subject))
    article = template_has_article(request.template) or (
        fact is not None and fact.subject.casefold().startswith(ARTICLE)
    )
    texts = [fill_template(template, request.subject, article) for template in relation.templates]
    return [text for text in texts if not same_text(text, request.prompt)]


def _neighbours(request: EditRequest, relation: Relation, true: str | None) -> list[Fact]:
    """Facts of other subjects, same true object first, the rest taken from each object in turn."""
    others = [
        fact
        for fact in relation.facts
        if bare_subject(fact.subject) != bare_subject(request.subject)
        and not same_object(fact.object, request.target_new)
    ]
    same = [fact for fact in others if true is not None and same_object(fact.object, true)]
    by_object: dict[str, list[Fact]] = {}
    for fact in others:
        if fact not in same:
            by_object.setdefault(fact.object, []).append(fact)
    turns = zip_longest(*by_object.values())
    return [*same, *(fact for turn in turns for fact in turn if fact is not None)]


def _is_about(fact: Fact, request: EditRequest, wanted: str) -> bool:
    return same_object(fact.object, wanted) and bare_subject(fact.subject) != bare_subject(request.subject)


def _asked(request: EditRequest, relation: Relation, kind: Kind, facts: Sequence[tuple[Fact, str]]) -> Iterator[Prompt]:
    """One prompt for each (fact, true object), going round the templates nearest to the request's."""
    near = sorted(relation.templates, key=lambda known: -wording_similarity(known, request.template))[:_NEAR_TEMPLATES]
    for index, (fact, true) in enumerate(facts):
        text = fill_template(near[index % len(near)], fact.subject)
        yield Prompt(kind, text, request.target_new, true)


def _no_relation(request: EditRequest) -> str:
    return (
        f"no relation of the atlas matches {request.relation or request.template!r}: "
        "paraphrase and neighbourhood not tested; give --suite FILE"
    )


def _no_true_object(request: EditRequest) -> str:
    return (
        f"the true object of {request.subject!r} is not known, so {request.target_new!r} has nothing to be compared "
        "with: rewrite and paraphrase not scored; give --true OBJECT"
    )
