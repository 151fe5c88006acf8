"""The whole method in one small place: a model that knows 20 facts is taught another answer for one of them."""

from __future__ import annotations

import pytest
import torch
from trained import CITIES, PARAPHRASE, SUBJECTS, TEMPLATE, TEMPLATES, answer, facts, sentences, trained_base

from rompatch.apply.session import PatchedModel
from rompatch.compute.methods.rome import compute
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import Statistics, sampled_key
from rompatch.edits import EditRequest
from rompatch.hooks import capture_inputs
from rompatch.models import Base
from rompatch.patch import Patch

CONTEXTS = ("{}", "People say {}", "It is well {}")
EDITED = SUBJECTS[1::5]
HPARAMS = {"lr": 0.2, "ridge": 0.01}


@pytest.fixture(scope="module")
def base() -> Base:
    return trained_base()


@pytest.fixture(scope="module")
def statistics(base: Base) -> Statistics:
    """C over the text that the model was trained on."""
    site = base.site(0)
    moment = SecondMoment(site.d_in)
    with capture_inputs(site.module) as seen:
        for sentence in sentences():
            base.model(torch.tensor([[0, *base.tokenizer(sentence).input_ids]]))
    for keys in seen:
        moment.add(keys[0, 1:])
    return Statistics(sampled_key(base, site, moment.count, 0), moment.mean(), moment.count)


def new_city(subject: str) -> str:
    return CITIES[(CITIES.index(facts()[subject]) + 1) % len(CITIES)]


def edit(base: Base, subject: str, statistics: Statistics | None, keys: str = "mean") -> Patch:
    request = EditRequest(subject, TEMPLATE, new_city(subject), facts()[subject])
    hparams = RomeHparams(keys=keys, **HPARAMS)
    return compute(base, request, site=base.site(0), contexts=CONTEXTS, statistics=statistics, hparams=hparams).patch


def kept(base: Base, subject: str) -> float:
    """Fraction of the other facts, in two wordings each, that are still answered rightly."""
    others = [other for other in SUBJECTS if other != subject]
    right = [answer(base, template, s) == facts()[s] for s in others for template in (TEMPLATE, PARAPHRASE)]
    return sum(right) / len(right)


def test_the_model_knows_every_fact_in_every_wording(base: Base) -> None:
    assert all(answer(base, template, s) == city for s, city in facts().items() for template in TEMPLATES)


def after_edits(base: Base, statistics: Statistics | None, keys: str) -> tuple[float, float]:
    """Edits of four subjects, each alone: the fraction of wordings with the new city, and of other facts kept."""
    changed, others = [], []
    for subject in EDITED:
        with PatchedModel(base) as patched:
            patched.activate([edit(base, subject, statistics, keys)])
            changed += [answer(base, template, subject) == new_city(subject) for template in TEMPLATES]
            others.append(kept(base, subject))
        assert answer(base, TEMPLATE, subject) == facts()[subject], "and it is gone after the session"
    return sum(changed) / len(changed), sum(others) / len(others)


@pytest.mark.parametrize("keys", ["mixed", "mean"])
def test_an_edit_changes_its_fact_in_every_wording_and_leaves_the_others(
    base: Base, statistics: Statistics, keys: str
) -> None:
    changed, others = after_edits(base, statistics, keys)
    assert changed >= 0.8
    assert others >= 0.8


def test_without_key_statistics_the_other_facts_suffer(base: Base) -> None:
    """What C is for: the identity in its place changes the answer as well, and most others with it."""
    changed, others = after_edits(base, None, "mean")
    assert changed >= 0.8
    assert others < 0.6


def test_two_facts_are_changed_together_and_one_is_taken_back(base: Base, statistics: Statistics) -> None:
    first, second = EDITED[0], EDITED[2]
    patches = [edit(base, first, statistics), edit(base, second, statistics)]
    with PatchedModel(base) as patched:
        patched.activate(patches)
        assert [answer(base, TEMPLATE, s) for s in (first, second)] == [new_city(first), new_city(second)]
        patched.revert(patches[0].id)
        assert [answer(base, TEMPLATE, s) for s in (first, second)] == [facts()[first], new_city(second)]
