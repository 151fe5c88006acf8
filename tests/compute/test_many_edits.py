"""Many edits at once: the same patches as one by one, and nothing lost when something goes wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pico import pico_base

from rompatch.compute.methods import rome
from rompatch.compute.methods.base import Computation
from rompatch.compute.methods.rome import compute, compute_many, value_contexts
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.edits import EditRequest
from rompatch.errors import RequestError
from rompatch.models import Base
from rompatch.sites import tensor_sha256

LAYER = 1
CONTEXTS = ("{}", "It is a matter of fact. {}", "Trains. {}")
REQUESTS = [
    EditRequest("Eiffel Tower", "The {} is located in", "Vienna"),
    EditRequest("Big Ben", "{} is located in", "Berlin"),
    EditRequest("Mozart", "{} was born in", "Rome"),
    EditRequest("Rome", "{} is", "Vienna, Berlin"),
]
HPARAMS = RomeHparams(lr=0.3, steps=5, early_stop_loss=0.0)


def many(base: Base, requests: list[EditRequest] = REQUESTS, **options: object) -> dict[int, object]:
    given = {"site": base.site(LAYER), "contexts": CONTEXTS, "statistics": None, "hparams": HPARAMS, **options}
    return dict(compute_many(base, requests, **given))  # type: ignore[arg-type]


def computation(found: object) -> Computation:
    assert isinstance(found, Computation)
    return found


@pytest.mark.parametrize("optimiser", ["adam", "lbfgs"])
@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt", "gptj"])
def test_together_they_are_what_they_are_alone(model_type: str, optimiser: str) -> None:
    base = pico_base(model_type)
    hparams = replace(HPARAMS, optimiser=optimiser)
    found = many(base, hparams=hparams)
    assert max(computation(one).measurements["batch"] for one in found.values()) > 1
    for index, request in enumerate(REQUESTS):
        alone = compute(base, request, site=base.site(LAYER), contexts=CONTEXTS, statistics=None, hparams=hparams)
        together = computation(found[index])
        assert together.patch.header == alone.patch.header
        np.testing.assert_allclose(together.patch.factors[0].key, alone.patch.factors[0].key, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.patch.factors[0].v, alone.patch.factors[0].v, rtol=0.02, atol=2e-3)
        losses = [[loss["total"] for loss in one.measurements["losses"]] for one in (together, alone)]
        assert losses[0] == pytest.approx(losses[1], abs=2e-3)
        assert losses[0][-1] <= losses[0][0]


def test_a_request_that_is_done_leaves_and_the_others_go_on() -> None:
    base = pico_base("llama")
    full = {index: computation(one).measurements["losses"] for index, one in many(base).items()}
    level = sorted(losses[-2]["total"] for losses in full.values())[1] + 1e-4
    stopped = many(base, hparams=replace(HPARAMS, early_stop_loss=level))
    lengths = [len(computation(stopped[index]).measurements["losses"]) for index in range(len(REQUESTS))]
    assert min(lengths) < max(lengths) == HPARAMS.steps
    for index, losses in stopped.items():
        for mine, theirs in zip(computation(losses).measurements["losses"], full[index], strict=False):
            assert mine["total"] == pytest.approx(theirs["total"], abs=2e-3)


def test_one_bad_request_does_not_keep_the_others() -> None:
    base = pico_base("gpt2")
    bad = EditRequest("Rome", "{} is " + "old " * 200 + "in", "Paris")
    found = many(base, [REQUESTS[0], bad, REQUESTS[1]])
    assert [type(found[index]).__name__ for index in range(3)] == ["Computation", "SubjectError", "Computation"]


def test_a_value_that_leaves_the_numbers_is_the_error_of_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico_base("gpt2")
    plain = rome.gather_many

    def poisoned(*args: object) -> object:
        found = plain(*args)  # type: ignore[arg-type]
        return [replace(found[0], output=found[0].output * torch.nan), *found[1:]]

    monkeypatch.setattr(rome, "gather_many", poisoned)
    found = many(base, REQUESTS[:2])
    assert sorted(type(one).__name__ for one in found.values()) == ["Computation", "ComputeError"]
    assert [one.measurements["batch"] for one in found.values() if isinstance(one, Computation)] == [2]


def test_whoever_stops_keeps_what_came_and_leaves_no_trace() -> None:
    base = pico_base("llama")
    before = tensor_sha256(base.site(LAYER).weight)
    stream = compute_many(
        base, REQUESTS, site=base.site(LAYER), contexts=CONTEXTS, statistics=None, hparams=HPARAMS, budget=1
    )
    index, first = next(stream)
    stream.close()
    assert computation(first).patch.header.request == REQUESTS[index]
    assert tensor_sha256(base.site(LAYER).weight) == before
    assert all("forward" not in vars(layer) for layer in base.model.model.layers)


def own_forwards(base: Base) -> dict[str, object]:
    return {name: vars(module).get("forward") for name, module in base.model.named_modules()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupt_in_the_middle_of_a_forward_leaves_the_model_as_it_was(precision: str) -> None:
    base, calls = pico_base("llama"), []
    base.model.model.layers[0].forward = base.model.model.layers[0].forward  # somebody's own
    before = own_forwards(base)

    def interrupt(*_: object) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    handle = base.model.model.layers[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        many(base, hparams=replace(HPARAMS, precision=precision))
    handle.remove()
    assert own_forwards(base) == before
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in base.model.modules())


def test_what_was_computed_before_an_interrupt_is_kept() -> None:
    base, kept, calls = pico_base("llama"), [], []

    def interrupt(_phase: str, done: int, _total: int) -> None:
        calls.append(done)
        if calls.count(1) == 3:
            raise KeyboardInterrupt

    stream = compute_many(
        base,
        REQUESTS,
        site=base.site(LAYER),
        contexts=CONTEXTS,
        statistics=None,
        hparams=HPARAMS,
        budget=1,
        notify=interrupt,
    )
    with pytest.raises(KeyboardInterrupt):
        kept.extend(stream)
    assert len(kept) == 2
    assert all(isinstance(one, Computation) for _, one in kept)


class NoCache(torch.nn.Module):
    """An attention that forgets the tokens that are cached: it cannot be replayed."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: object, **kwargs: object) -> object:
        states = kwargs.get("hidden_states", args[0] if args else None)
        found = self.inner(*args, **kwargs)
        return (found[0] + states.cumsum(dim=1), *found[1:])  # type: ignore[union-attr]


def test_a_model_that_cannot_be_replayed_is_optimised_by_the_plain_loop() -> None:
    base = pico_base("llama")
    for layer in base.model.model.layers:
        layer.self_attn = NoCache(layer.self_attn)
    found = many(base, REQUESTS[:2])
    assert [computation(found[index]).measurements["replayed"] for index in (0, 1)] == [False, False]
    assert all(computation(one).measurements["norms"]["delta"] > 0 for one in found.values())


def test_a_model_in_training_mode_is_edited_without_its_dropout() -> None:
    base = pico_base("gpt2")
    for module in base.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = computation(many(base)[0]).patch.id
    base.model.train(True)
    assert computation(many(base)[0]).patch.id == expected
    assert base.model.training


@pytest.mark.parametrize("layer", [0, 2])
def test_sites_at_both_ends_of_the_model_are_replayed(layer: int) -> None:
    base = pico_base("llama")
    found = many(base, site=base.site(layer))
    assert all(computation(one).measurements["replayed"] for one in found.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [("kl_factor", float("nan")), ("weight_decay", -1.0), ("steps", 2.5), ("value_contexts", 0), ("target_loss", "x")],
)
def test_a_hyper_parameter_that_is_no_sound_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        RomeHparams(**{name: value})  # type: ignore[arg-type]


def test_running_out_of_memory_halves_the_batch_and_finishes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base, notes = pico_base("llama"), []
    expected, head = many(base), base.model.get_output_embeddings()
    multiply = head.forward

    def scarce(states: torch.Tensor) -> torch.Tensor:
        if states.shape[1] > 2 * len(CONTEXTS) + 2:  # reads of two requests with one token to say each
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return multiply(states)

    monkeypatch.setattr(head, "forward", scarce)
    singles = REQUESTS[:3]
    found = many(base, singles, budget=10**12, note=notes.append)
    assert notes == [f"out of memory with {len(singles)} edits at once: going on with {len(singles) // 2}"]
    for index, request in enumerate(singles):
        left, right = computation(found[index]).patch, computation(expected[REQUESTS.index(request)]).patch
        np.testing.assert_allclose(left.factors[0].v, right.factors[0].v, rtol=0.02, atol=2e-3)


def test_v_is_optimised_under_some_of_the_contexts() -> None:
    contexts = ["{}", *(f"{i}. {{}}" for i in range(20))]
    assert value_contexts(contexts, 21) == contexts
    assert value_contexts(contexts, 99) == contexts
    assert value_contexts(contexts, 1) == ["{}"]
    assert value_contexts(contexts, 6) == ["{}", "2. {}", "6. {}", "10. {}", "14. {}", "18. {}"]
    found = many(pico_base("llama"), hparams=replace(HPARAMS, value_contexts=2))
    assert computation(found[0]).patch.header.contexts == CONTEXTS, "k* is the mean over all of them"


def test_bfloat16_products_give_nearly_the_same_patch_and_are_recorded() -> None:
    base = pico_base("llama")
    exact, rounded = (many(base, hparams=replace(HPARAMS, precision=name)) for name in ("float32", "bfloat16"))
    for index in range(len(REQUESTS)):
        left, right = (computation(found[index]).patch for found in (exact, rounded))
        assert (left.header.hparams["precision"], right.header.hparams["precision"]) == ("float32", "bfloat16")
        one, two = left.factors[0].v, right.factors[0].v
        assert 0 < np.linalg.norm(one - two) < 0.2 * np.linalg.norm(one)
    assert all("forward" not in vars(module) for module in base.model.modules())


def test_a_half_precision_base_is_optimised_in_its_own_dtype_by_default() -> None:
    base = pico_base("llama", dtype=torch.bfloat16)
    assert computation(many(base)[0]).patch.header.hparams["precision"] == "bfloat16"


@pytest.mark.parametrize("name", ["float8", "int4"])
def test_an_unknown_precision_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        RomeHparams(precision=name)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(RequestError, match=r"no optimiser 'sgd'.*adam or lbfgs"):
        RomeHparams(optimiser="sgd")
