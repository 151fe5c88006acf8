"""A model whose weights are elsewhere gives the same bits as the model in memory (keys, hashes, edits, gradients), and
the same spread patches but for rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from offloading import OFFLOADS, offloaded_base
from pico import pico_base
from random_patches import random_patch
from torch import Tensor

from rompatch.apply.session import PatchedModel
from rompatch.compute.gather import encode_contexts, gather_keys
from rompatch.compute.methods.rome import compute
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.spreading import MeasuredSite
from rompatch.edits import EditRequest
from rompatch.hooks import edit_output, recomputed
from rompatch.models import Base, fingerprint_inputs
from rompatch.offload import is_offloaded, parameter_of
from rompatch.patch import Patch, SiteFactors
from rompatch.sites import layer_modules, tensor_sha256

LAYER = 1
CONTEXTS = ("{}", "It is a matter of fact. {}")
REQUEST = EditRequest("Eiffel Tower", "The {} is located in", "Rome", "Paris")
IDS = torch.tensor([[1, 5, 7, 9, 30, 2]])
CASES = [(model_type, how) for model_type in ("llama", "gpt2", "gemma", "opt") for how in OFFLOADS]
"""gpt2 stores W^T; gpt2, gemma and opt tie their head to the embeddings; opt has biases."""

pytestmark = pytest.mark.parametrize(("model_type", "how"), CASES)


def logits(base: Base) -> Tensor:
    with torch.inference_mode():
        output: Tensor = base.model(input_ids=IDS.to(base.input_device)).logits
    return output


def weights(base: Base) -> dict[str, str]:
    return {name: tensor_sha256(parameter_of(base.model, name)) for name, _ in base.model.named_parameters()}


def patches(base: Base) -> list[Patch]:
    return [random_patch(base, seed, layer=LAYER + seed % 2) for seed in range(3)]


def test_site_and_hashes_are_those_of_the_model_in_memory(model_type: str, how: str, tmp_path: Path) -> None:
    plain, base = pico_base(model_type), offloaded_base(model_type, how, tmp_path)
    assert is_offloaded(base.model) == (how != "hooks only")
    site, expected = base.site(LAYER), plain.site(LAYER)
    assert site.ref() == expected.ref()
    assert torch.equal(site.matrix(), expected.matrix())
    assert (site.bias is None) == (expected.bias is None)
    assert site.bias is None or expected.bias is None or torch.equal(site.bias, expected.bias)
    keys = torch.randn(2, site.d_in)
    assert torch.equal(site.product(keys), expected.product(keys))
    assert site.norm() == expected.norm()
    assert [fingerprint_inputs(base, layer) for layer in range(3)] == [
        fingerprint_inputs(plain, layer) for layer in range(3)
    ]


def test_keys_are_bit_equal(model_type: str, how: str, tmp_path: Path) -> None:
    plain, base = pico_base(model_type), offloaded_base(model_type, how, tmp_path)
    rows = encode_contexts(plain.tokenizer, REQUEST, CONTEXTS, document_start=True)
    expected = gather_keys(plain.model, plain.tokenizer, plain.site(LAYER), rows)
    for _ in range(2):  # a pass that stops midway leaves nothing behind that the next one trips over
        found = gather_keys(base.model, base.tokenizer, base.site(LAYER), rows)
        assert torch.equal(found.keys, expected.keys)
        assert torch.equal(found.output, expected.output)


def test_a_session_edits_what_runs_and_restores_it_bit_for_bit(model_type: str, how: str, tmp_path: Path) -> None:
    plain, base = pico_base(model_type), offloaded_base(model_type, how, tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    before, hashes = logits(base), weights(base)
    with PatchedModel(plain) as expected, PatchedModel(base) as patched:
        for stack in (patches(plain), patches(plain)[:1], []):
            expected.activate(stack)
            patched.activate(stack)
            assert torch.equal(logits(base), logits(plain)), len(stack)
            assert torch.equal(logits(base), before) is (not stack)
            changed = {name for name, digest in weights(base).items() if digest != hashes[name]}
            assert changed == {site.parameter for patch in stack for site in patch.header.sites}
        patched.activate(patches(plain))
    assert weights(base) == hashes
    assert torch.equal(logits(base), before)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_gradients_are_bit_equal_also_where_layers_are_recomputed(model_type: str, how: str, tmp_path: Path) -> None:
    plain, base = pico_base(model_type), offloaded_base(model_type, how, tmp_path)
    expected = gradient(plain, plain_layers=True)
    assert torch.equal(gradient(base, plain_layers=True), expected)
    assert torch.equal(gradient(base, plain_layers=False), expected)


def test_a_spread_patch_is_that_of_the_model_in_memory(model_type: str, how: str, tmp_path: Path) -> None:
    expected = keyed(spread_patch(pico_base(model_type)))
    found = keyed(spread_patch(offloaded_base(model_type, how, tmp_path)))
    for one, other in zip(found, expected, strict=True):
        for name in ("key", "value", "base_out", "u"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-5)
        assert np.abs(other.value - other.base_out).max() > 1e-3, "the optimisation moved"


def keyed(patch: Patch) -> list[SiteFactors]:
    return [factors for factors in patch.factors if isinstance(factors, SiteFactors)]


def spread_patch(base: Base) -> Patch:
    """One over two layers; the one above them is recomputed where weights are elsewhere."""
    hparams = RomeHparams(keys="both", spread=2, steps=5, optimiser="lbfgs")
    below = [MeasuredSite(base.site(LAYER - 1), None)]
    top = base.site(LAYER)
    return compute(base, REQUEST, site=top, contexts=CONTEXTS, statistics=None, below=below, hparams=hparams).patch


def gradient(base: Base, *, plain_layers: bool) -> Tensor:
    """d(sum of squared logits) / d(an addition to the site's output)."""
    delta = torch.linspace(-1, 1, base.hidden_size, requires_grad=True)
    above = [] if plain_layers else layer_modules(base.model, base.architecture)[LAYER + 1 :]
    with recomputed(above), edit_output(base.site(LAYER).module, lambda output: output + delta):
        loss = base.model(input_ids=IDS, use_cache=False).logits.square().sum()
    (found,) = torch.autograd.grad(loss, delta)
    return found
