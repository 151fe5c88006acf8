"""Every architecture in the table, on random pico models: the same claims for all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import N_LAYERS, SIZES, pico_base, save_pico
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from rompatch.apply.bake import bake_folder
from rompatch.apply.session import PatchedModel
from rompatch.architectures import ARCHITECTURES
from rompatch.compute.methods import METHODS
from rompatch.compute.methods.rome import KEY_ROWS
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.replay import FullForward, Replay
from rompatch.compute.replaying import can_replay
from rompatch.compute.rows import RowBatch, value_rows
from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import Statistics, sampled_key
from rompatch.edits import EditRequest
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.sites import Site, layer_modules, tensor_sha256
from rompatch.tokens import pad_id
from rompatch.workflows.baking import edits_of

LAYER = 1
CONTEXTS = ("{}", "It is a matter of fact. {}", "Trains leave from Berlin. {}")
OTHER = EditRequest("Big Ben", "{} is in", "Berlin", "London")
REQUEST = EditRequest("Eiffel Tower", "The {} is located in", "Rome", "Paris")
MODEL_TYPES = sorted(ARCHITECTURES)
HALVES = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Half precisions, and how far a constraint may miss its value there, relative to the change."""


def random_statistics(base: Base) -> Statistics:
    """A well-conditioned C, so that u differs from k."""
    site = base.site(LAYER)
    moment = SecondMoment(site.d_in)
    moment.add(torch.randn(4 * site.d_in, site.d_in, generator=torch.Generator().manual_seed(1)))
    return Statistics(sampled_key(base, site, 1, 0), moment.mean(), moment.count)


def computed(
    base: Base, keys: str = "mixed", steps: int = 4, method: str = "rome", request: EditRequest = REQUEST
) -> Patch:
    return (
        METHODS[method]
        .compute(
            base,
            request,
            site=base.site(LAYER),
            contexts=CONTEXTS,
            statistics=random_statistics(base),
            hparams=RomeHparams(keys=keys, steps=steps),
        )
        .patch
    )


@cache
def patch_of(model_type: str, keys: str = "mixed", dtype: torch.dtype = torch.float32, method: str = "rome") -> Patch:
    """The patch for :data:`REQUEST` on a pico model of its own; several claims are about it."""
    return computed(pico_base(model_type, dtype=dtype), keys, method=method)


def test_every_architecture_of_the_table_has_a_pico_model() -> None:
    assert set(SIZES) == set(MODEL_TYPES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_site_is_the_module_that_leads_out_of_the_mlp(model_type: str) -> None:
    base = pico_base(model_type)
    assert base.n_layers == N_LAYERS
    site = base.site(LAYER)
    assert site.d_out == base.hidden_size
    assert site.d_in > site.d_out
    inputs = torch.randn(2, site.d_in)
    bias = 0.0 if site.bias is None else site.bias
    torch.testing.assert_close(site.module(inputs), inputs @ site.matrix().T + bias, rtol=1e-5, atol=1e-5)


def test_orientation_comes_from_the_type_even_on_a_square_matrix() -> None:
    base = pico_base("gpt2")
    square = Conv1D(32, 32)
    base.model.transformer.h[LAYER].mlp.c_proj = square
    site = base.site(LAYER)
    assert site.transposed
    torch.testing.assert_close(site.matrix(), square.weight.T)
    base.model.transformer.h[LAYER].mlp.c_proj = nn.Linear(32, 32)
    assert not base.site(LAYER).transposed


def two_requests(base: Base) -> RowBatch:
    """Two requests of other lengths, tails and targets in one batch."""
    return RowBatch(tuple(value_rows(base.tokenizer, one, CONTEXTS, document_start=True) for one in (REQUEST, OTHER)))


def replay_of(base: Base, batch: RowBatch, sites: Sequence[Site] = ()) -> Replay:
    layers = layer_modules(base.model, base.architecture)
    return Replay(base.model, layers, sites or [base.site(LAYER)], batch, pad_id=pad_id(base.tokenizer))


@pytest.mark.parametrize("chosen", [(LAYER,), (LAYER, LAYER - 1), (LAYER - 1, LAYER)], ids=str)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_model_runs_like_its_replay(model_type: str, chosen: tuple[int, ...]) -> None:
    base = pico_base(model_type)
    sites, batch = [base.site(layer) for layer in chosen], two_requests(base)
    plain = FullForward(base.model, [], sites, batch, pad_id=pad_id(base.tokenizer))
    replay = replay_of(base, batch, sites)
    size = (len(chosen), sites[0].d_out)
    rising, falling = torch.linspace(-1, 1, size[0] * size[1]), torch.linspace(2, 0, size[0] * size[1])
    delta = torch.stack([rising.reshape(size), falling.reshape(size)]).requires_grad_(True)
    left, right = replay.logits(delta), plain.logits(delta)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    (from_replay,) = torch.autograd.grad(left.square().sum(), delta)
    (from_plain,) = torch.autograd.grad(right.square().sum(), delta)
    torch.testing.assert_close(from_replay, from_plain, rtol=1e-3, atol=1e-3 * float(from_plain.abs().max()))
    unmoved = plain.logits(torch.zeros_like(delta)).detach()
    assert (right.detach() - unmoved).abs().max() > 0.01 * unmoved.std(), "delta moves the logits"
    assert from_plain.abs().amax(dim=(0, 2)).min() > 0, "at every site"
    assert can_replay(base, sites, batch), "the method itself chooses the replay"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_replay_cut_to_one_request_is_the_replay_of_that_request(model_type: str) -> None:
    base = pico_base(model_type)
    batch = two_requests(base)
    both, delta = replay_of(base, batch), torch.linspace(-1, 1, base.site(LAYER).d_out)[None, None]
    for index in (0, 1):
        alone = replay_of(base, batch.narrow([index])).logits(delta)
        torch.testing.assert_close(both.narrow([index]).logits(delta), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keys", ["mixed", "mean"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_edited_weight_maps_key_to_value(model_type: str, keys: str) -> None:
    base, patch = pico_base(model_type), patch_of(model_type, keys)
    factors, row = patch.factors[0], KEY_ROWS[keys]
    with PatchedModel(base) as patched:
        patched.activate([patch])
        mapped = base.site(LAYER).matrix() @ torch.from_numpy(factors.key[row])
    np.testing.assert_allclose(mapped.numpy(), factors.value[row], rtol=1e-4, atol=1e-4)
    assert np.abs(factors.value[row] - factors.base_out[row]).max() > 1e-3, "the optimisation moved"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_half_precision_bases_are_edited_too(model_type: str, dtype: torch.dtype) -> None:
    base, patch = pico_base(model_type, dtype=dtype), patch_of(model_type, dtype=dtype)
    assert patch.header.sites[0].dtype == str(dtype).removeprefix("torch.")
    factors = patch.factors[0]
    with PatchedModel(base) as patched:
        patched.activate([patch])
        mapped = base.site(LAYER).matrix().float() @ torch.from_numpy(factors.key[1])
    change = np.abs(factors.value[1] - factors.base_out[1]).max()
    assert np.abs(mapped.numpy() - factors.value[1]).max() < HALVES[dtype] * change


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_computing_leaves_the_model_unchanged_and_is_reproducible(model_type: str, method: str) -> None:
    base = pico_base(model_type)
    before = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    first = computed(base, method=method)
    assert {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.model.modules())
    assert not any("forward" in vars(module) for module in base.model.modules())
    assert patch_of(model_type, method=method).id == first.id, "computed on another model of the same weights"


@pytest.mark.parametrize(
    ("model_type", "dtype", "count"),
    [
        *((model_type, torch.float32, 1) for model_type in MODEL_TYPES),
        *((model_type, dtype, 2) for model_type in ("gpt2", "llama") for dtype in (torch.float32, *HALVES)),
    ],
)
def test_revert_is_exact_and_bake_equals_the_session(
    model_type: str, dtype: torch.dtype, count: int, tmp_path: Path
) -> None:
    folder = save_pico(tmp_path / "base", model_type, dtype=dtype)
    base = pico_base(model_type, dtype=dtype)
    patches = [patch_of(model_type, dtype=dtype)]
    if count > 1:
        patches.append(computed(base, steps=2, request=OTHER))
    original = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    with PatchedModel(base) as patched:
        patched.activate(patches)
        edited = {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}
    assert {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()} == original
    parameter = patches[0].header.sites[0].parameter
    assert [name for name in original if original[name] != edited[name]] == [parameter]
    bake_folder(folder, tmp_path / "edited", edits_of(patches), lambda _written: {})
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "edited")
    assert {name: tensor_sha256(tensor) for name, tensor in baked.state_dict().items()} == edited
