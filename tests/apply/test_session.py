"""The promises of a live model: revert is bit-exact, order does not matter, nothing is applied half."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from pico import pico_base
from random_patches import random_adapter, random_patch

from rompatch.apply.session import PatchedModel
from rompatch.errors import BaseMismatchError, PatchNotFoundError, SiteError
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.sites import tensor_sha256

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def hashes(base: Base) -> dict[str, str]:
    return {name: tensor_sha256(tensor) for name, tensor in base.model.state_dict().items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_revert_is_bit_exact_after_a_hundred_random_steps(model_type: str, dtype: torch.dtype) -> None:
    base = pico_base(model_type, dtype=dtype)
    patches = [random_patch(base, seed, layer=seed % 2) for seed in range(6)]
    patches += [random_adapter(base, seed, layer=seed % 2) for seed in range(2)]
    original, rng = hashes(base), random.Random(0)
    patched = PatchedModel(base)
    for _ in range(100):
        active = {patch.id for patch in patched.patches}
        patch = rng.choice(patches)
        patched.revert(patch.id) if patch.id in active else patched.apply(patch)
        changed = {name for name, value in hashes(base).items() if value != original[name]}
        assert changed == {site.parameter for one in patched.patches for site in one.header.sites}
    patched.restore()
    assert hashes(base) == original


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_order_of_applying_gives_the_same_bits(dtype: torch.dtype) -> None:
    base = pico_base(dtype=dtype)
    patches = [*(random_patch(base, seed) for seed in range(4)), random_adapter(base, 4)]
    seen = set()
    for seed in range(10):
        shuffled = random.Random(seed).sample(patches, len(patches))
        with PatchedModel(base) as patched:
            for patch in shuffled:
                patched.apply(patch)
            seen.add(hashes(base)[patches[0].header.sites[0].parameter])
    assert len(seen) == 1


def test_reverting_the_middle_patch_equals_never_applying_it() -> None:
    base = pico_base()
    first, middle, last = (random_patch(base, seed) for seed in range(3))
    with PatchedModel(base) as patched:
        patched.activate([first, middle, last])
        patched.revert(middle.short_id)
        without = hashes(base)
    with PatchedModel(base) as patched:
        patched.activate([last, first])
        assert hashes(base) == without


def test_the_context_restores_after_an_exception() -> None:
    base = pico_base()
    original = hashes(base)
    with pytest.raises(KeyboardInterrupt), PatchedModel(base) as patched:
        patched.activate([random_patch(base, 0)])
        assert hashes(base) != original
        raise KeyboardInterrupt
    assert hashes(base) == original


def test_a_patch_for_another_tensor_is_refused_and_nothing_is_applied_half() -> None:
    base, other = pico_base(), pico_base(seed=1)
    good, foreign = random_patch(base, 0), random_patch(other, 1, layer=0)
    original = hashes(base)
    with PatchedModel(base) as patched:
        with pytest.raises(BaseMismatchError, match=r"layers\.0\.mlp\.down_proj") as caught:
            patched.activate([good, foreign])
        assert caught.value.facts["patch_id"] == foreign.id
        assert hashes(base) == original
        assert patched.patches == ()


def test_a_patch_for_another_tokenizer_is_refused() -> None:
    base = pico_base()
    patch = random_patch(base, 0)
    foreign = Patch(replace(patch.header, base=replace(patch.header.base, tokenizer_hash="0" * 64)), patch.factors)
    with PatchedModel(base) as patched, pytest.raises(BaseMismatchError, match="tokenizer"):
        patched.activate([foreign])


def test_a_patch_for_another_architecture_is_refused() -> None:
    base, other = pico_base("llama"), pico_base("gpt2")
    with PatchedModel(base) as patched, pytest.raises(SiteError, match=r"transformer\.h\.1"):
        patched.activate([random_patch(other, 0)])


def test_reverting_what_is_not_active_is_refused() -> None:
    base = pico_base()
    with PatchedModel(base) as patched, pytest.raises(PatchNotFoundError, match="active: none"):
        patched.revert("abcd")


def test_the_base_hash_is_taken_before_any_edit() -> None:
    """A second patch at the same site is checked against the base, not against the edited weight."""
    base = pico_base()
    with PatchedModel(base) as patched:
        patched.apply(random_patch(base, 0))
        second = Patch(random_patch(pico_base(), 1).header, random_patch(pico_base(), 1).factors)
        patched.apply(second)
        assert len(patched.patches) == 2
