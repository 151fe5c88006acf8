"""blame against the plain way: the probability in a model whose weights have every stack in turn."""

from __future__ import annotations

import math

import pytest
import torch
from trained import SUBJECTS, TEMPLATE, facts, trained_base

from rompatch.errors import ConflictError, RequestError, SuiteError, TargetError
from rompatch.patch import Patch
from rompatch.tokens import encode_pair
from rompatch.workflows.store import Store


def naive(store: Store, names: list[str], prompt: str, target: str) -> float:
    """log P(target | prompt) with those patches in the weights."""
    encoded = encode_pair(trained_base().tokenizer, prompt, target, document_start=True)
    ids = torch.tensor([[*encoded.prompt_ids, *encoded.target_ids]])
    with store.session(names) as model, torch.inference_mode():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    places = range(len(encoded.prompt_ids) - 1, ids.shape[1] - 1)
    return sum(float(logprobs[place, token]) for place, token in zip(places, encoded.target_ids, strict=True))


def test_every_probability_is_that_of_edited_weights(toy: Store, patches: list[Patch]) -> None:
    toy.apply(*(patch.id for patch in patches))
    request = patches[1].header.request
    assert request is not None
    found = toy.blame(request.prompt, target=request.target_new)
    ids = [patch.id for patch in patches]
    assert found.base.logprob == pytest.approx(naive(toy, [], request.prompt, request.target_new), abs=1e-3)
    assert found.edited.logprob == pytest.approx(naive(toy, ids, request.prompt, request.target_new), abs=1e-3)
    assert {share.patch.id for share in found.shares} == set(ids)
    for share in found.shares:
        others = [one for one in ids if one != share.patch.id]
        expected = naive(toy, others, request.prompt, request.target_new)
        assert share.without.logprob == pytest.approx(expected, abs=1e-3)
        assert share.effect == pytest.approx(found.edited.logprob - share.without.logprob)
    effects = [abs(share.effect) for share in found.shares]
    # Which one comes first is the processor's rounding, in so small a model.
    assert effects == sorted(effects, reverse=True)


def test_a_patch_alone_has_the_whole_effect(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[1].id)
    request = patches[1].header.request
    assert request is not None
    found = toy.blame(request.prompt, target=request.target_new)
    (share,) = found.shares
    assert share.effect == pytest.approx(found.edited.logprob - found.base.logprob, abs=1e-3)
    assert share.effect > 2, "the patch about this very subject"


def test_without_a_target_the_edited_models_own_answer_is_asked_for(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    request = patches[0].header.request
    assert request is not None
    found = toy.blame(request.prompt)
    assert found.target == request.target_new
    assert found.edited.probability == pytest.approx(math.exp(found.edited.logprob))
    assert found.edited.probability > found.base.probability


def test_only_the_most_excited_patches_are_tried_and_the_rest_is_told(toy: Store, patches: list[Patch]) -> None:
    toy.apply(*(patch.id for patch in patches))
    request = patches[2].header.request
    assert request is not None
    found = toy.blame(request.prompt, most=1)
    assert [share.patch.id for share in found.shares] == [patches[2].id]
    assert found.left_in == 2
    assert toy.blame(request.prompt, most=0).left_in == 0


def test_a_stack_of_one_without_it_is_the_base(toy: Store, patches: list[Patch]) -> None:
    toy.apply(patches[0].id)
    found = toy.blame(TEMPLATE.replace("{}", SUBJECTS[5]), target=facts()[SUBJECTS[5]])
    (share,) = found.shares
    assert share.without == found.base


def test_blame_leaves_the_model_and_the_store_alone(toy: Store, patches: list[Patch]) -> None:
    toy.apply(*(patch.id for patch in patches))
    before = {name: tensor.clone() for name, tensor in trained_base().model.state_dict().items()}
    toy.blame("The tower of Balmar is in")
    assert all(tensor.equal(before[name]) for name, tensor in trained_base().model.state_dict().items())
    assert not any(module._forward_hooks for module in trained_base().model.modules())
    assert toy.ledger.verifications() == ()


def test_what_cannot_be_asked_is_refused(toy: Store, patches: list[Patch]) -> None:
    with pytest.raises(ConflictError, match="empty"):
        toy.blame("The tower of Balmar is in")
    toy.apply(patches[0].id)
    for options in ({"prompt": " "}, {"prompt": "x", "target": " "}, {"prompt": "x", "most": -1}):
        with pytest.raises(RequestError, match="nothing to ask"):
            toy.blame(**options)  # type: ignore[arg-type]
    with pytest.raises(SuiteError, match="too long"):
        toy.blame("Balmar " * 500, target="Rome")
    with pytest.raises((TargetError, RequestError)):
        toy.blame("x", target=" ")
