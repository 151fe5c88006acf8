"""A stack beside the weights: equal to the stack in the weights, per thread and per row, and gone afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from pico import pico_base, toy_tokenizer
from random_patches import random_patch
from test_session import hashes
from torch import Tensor, nn

from rompatch.apply.overlay import Overlay, Rows, added, overlaid
from rompatch.apply.session import PatchedModel
from rompatch.apply.solve import solve_stack
from rompatch.errors import BaseMismatchError, ConflictError, RequestError, SiteError
from rompatch.models import Base, wrap
from rompatch.patch import Patch

IDS = torch.tensor([[5, 9, 2, 7], [8, 1, 3, 4], [6, 6, 2, 1]])


def logits(base: Base, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return base.model(input_ids=ids, use_cache=False).logits


def small_patches(base: Base, n: int = 3) -> list[Patch]:
    """Patches at two layers, mild enough for float32 to compare."""
    return [random_patch(base, seed, layer=seed % 2) for seed in range(n)]


def materialised(base: Base, stack: Iterable[Patch], ids: Tensor = IDS) -> Tensor:
    with PatchedModel(base) as patched:
        patched.activate(stack)
        return logits(base, ids)


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_overlay_and_materialised_form_agree_to_rounding(model_type: str) -> None:
    """Linear, Conv1D, and a model that flattens batch and tokens before the site."""
    base = pico_base(model_type)
    stack = small_patches(base)
    plain, original = logits(base), hashes(base)
    with PatchedModel(base) as patched:
        patched.activate(stack, form="overlay")
        assert hashes(base) == original, "the weights are the base's"
        found = logits(base)
    expected = materialised(base, stack)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert torch.equal(logits(base), plain)
    assert hook_count(base.model) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_site_itself_gives_what_exact_weights_would_to_one_rounding(model_type: str, dtype: torch.dtype) -> None:
    base = pico_base(model_type, dtype=dtype)
    stack = [random_patch(base, seed) for seed in range(2)]
    site = base.site(1)
    (update,) = solve_stack(stack).values()
    inputs = torch.randn(2, 3, site.d_in, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = site.module(inputs)
    with overlaid(base.model, {site.parameter_name: site.module}, Rows(Overlay.of({site.parameter_name: update}))):
        found = site.module(inputs)
    term = inputs.double() @ torch.from_numpy(update.dense()).T
    expected = plain.double() + term
    assert found.dtype == dtype
    scale = float(term.abs().max() + plain.double().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6 * scale)


def test_in_half_precision_an_overlay_is_nearer_to_the_exact_edit_than_rounded_weights() -> None:
    base, exact = pico_base(dtype=torch.bfloat16), pico_base(dtype=torch.bfloat16)
    stack = [random_patch(base, seed) for seed in range(2)]
    site, (update,) = base.site(1), solve_stack(stack).values()
    inputs = torch.randn(64, site.d_in, generator=torch.Generator().manual_seed(0)).bfloat16()
    wide = site.matrix().double() + torch.from_numpy(update.dense())
    expected = inputs.double() @ wide.T
    errors = []
    for form in ("overlay", "materialised"):
        with PatchedModel(base) as patched:
            patched.activate(stack, form=form)  # type: ignore[arg-type]
            errors.append(float((site.module(inputs).double() - expected).norm()))
    assert errors[0] <= 1.2 * errors[1]
    assert hashes(base) == hashes(exact)


def test_every_row_of_a_batch_runs_with_its_own_stack() -> None:
    for model_type in ("llama", "gpt2", "opt"):
        base = pico_base(model_type)
        first, second, third = small_patches(base)
        with PatchedModel(base) as patched, patched.using(rows=[[first, third], None, [second]]):
            found = logits(base)
        for row, stack in enumerate(([first, third], [], [second])):
            expected = materialised(base, stack, IDS[row : row + 1])[0]
            torch.testing.assert_close(found[row], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_rows_that_share_a_stack_are_computed_together() -> None:
    base = pico_base()
    stack = small_patches(base, 2)
    overlay, other = Overlay.of(solve_stack(stack)), Overlay.of(solve_stack(stack[:1]))
    rows = Rows(each=(overlay, None, overlay, other))
    groups = rows.groups(stack[0].header.sites[0].parameter)
    assert [numbers.tolist() for _, numbers in groups if numbers is not None] == [[0, 2], [3]]


def test_a_batch_of_another_number_of_rows_is_refused() -> None:
    base = pico_base()
    (patch,) = small_patches(base, 1)
    with PatchedModel(base) as patched, patched.using(rows=[[patch], None]), pytest.raises(RequestError) as caught:
        logits(base)
    assert caught.value.expected == "2 rows"
    assert hook_count(base.model) == 0


def test_two_threads_run_their_own_stacks_at_the_same_time() -> None:
    base = pico_base()
    stacks = [[patch] for patch in small_patches(base, 2)] + [[]]
    expected = [materialised(base, stack) for stack in stacks]
    together, problems = threading.Barrier(len(stacks), timeout=30), []

    def serve(number: int) -> None:
        try:
            with patched.using(stacks[number]):
                for _ in range(5):
                    together.wait()
                    found = logits(base)
                    scale = float(expected[number].abs().max())
                    torch.testing.assert_close(found, expected[number], rtol=1e-3, atol=1e-3 * scale)
        except BaseException as problem:  # noqa: BLE001 - told to the test's own thread
            problems.append(problem)
            together.abort()

    with PatchedModel(base) as patched:
        threads = [threading.Thread(target=serve, args=(number,)) for number in range(len(stacks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert hook_count(base.model) == 0


def test_tasks_of_one_event_loop_have_their_own_stacks() -> None:
    base = pico_base()
    first, second = ([patch] for patch in small_patches(base, 2))
    expected = [materialised(base, stack) for stack in (first, second)]

    async def serve(stack: list[Patch]) -> Tensor:
        with patched.using(stack):
            await asyncio.sleep(0.01)  # the other task enters its own meanwhile
            return logits(base)

    async def both() -> list[Tensor]:
        return await asyncio.gather(serve(first), serve(second))

    with PatchedModel(base) as patched:
        for found, wanted in zip(asyncio.run(both()), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_contexts_nest_and_the_active_overlay_comes_back() -> None:
    base = pico_base()
    first, second, third = small_patches(base)
    plain = logits(base)
    with PatchedModel(base) as patched:
        patched.activate([first], form="overlay")
        outer = logits(base)
        with patched.using([second]):
            inner = logits(base)
            with patched.using([]):
                assert torch.equal(logits(base), plain)
            with pytest.raises(KeyboardInterrupt), patched.using([third]):
                raise KeyboardInterrupt
            assert torch.equal(logits(base), inner)
        assert torch.equal(logits(base), outer)
        patched.apply(second)
        assert patched.form == "overlay", "the form stays"
        patched.activate([first], form="materialised")
        assert patched.form == "materialised"
    assert torch.equal(logits(base), plain)


def test_changing_between_forms_leaves_the_base_as_it_was() -> None:
    base = pico_base()
    stack, original = small_patches(base), hashes(base)
    with PatchedModel(base) as patched:
        for form in ("overlay", "materialised", "overlay", "overlay", "materialised"):
            patched.activate(stack, form=form)  # type: ignore[arg-type]
            assert (hashes(base) == original) is (form == "overlay")
    assert hashes(base) == original
    assert hook_count(base.model) == 0


def test_a_stack_of_ones_own_needs_the_base_in_the_weights() -> None:
    base = pico_base()
    first, second = small_patches(base, 2)
    with PatchedModel(base) as patched:
        patched.activate([first])
        with pytest.raises(ConflictError, match="in the weights"), patched.using([second]):
            pass
        patched.restore()
        with patched.using([second]), pytest.raises(ConflictError, match="cannot change now"):
            patched.activate([first])
        with pytest.raises(RequestError, match="one for each row"), patched.using():
            pass
        with pytest.raises(RequestError, match="no form"):
            patched.activate([first], form="beside")  # type: ignore[arg-type]


def test_restoring_leaves_a_thread_its_stack_until_it_leaves() -> None:
    base = pico_base()
    (patch,) = small_patches(base, 1)
    expected = materialised(base, [patch])
    patched = PatchedModel(base)
    with patched.using([patch]):
        patched.restore()
        torch.testing.assert_close(logits(base), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert hook_count(base.model) == 0


def test_a_patch_for_another_base_is_refused_before_anything_is_attached() -> None:
    base = pico_base()
    foreign = random_patch(pico_base(seed=1), 1, layer=0)
    with PatchedModel(base) as patched:
        with pytest.raises(BaseMismatchError), patched.using([random_patch(base, 0), foreign]):
            pass
        with pytest.raises(BaseMismatchError):
            patched.activate([foreign], form="overlay")
        assert hook_count(base.model) == 0


def test_rows_of_which_one_is_refused_leave_no_hook_behind() -> None:
    base = pico_base()
    good = random_patch(base, 0)
    bad = replace(good, header=replace(good.header, base=replace(good.header.base, tokenizer_hash="0" * 64)))
    patched = PatchedModel(base)
    with pytest.raises(BaseMismatchError), patched.using(rows=[[good], [bad]]):
        pass
    assert hook_count(base.model) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_copy_of_the_base_takes_overlays_and_no_weights() -> None:
    base = pico_base()
    stack = small_patches(base, 2)
    small = torch.ao.quantization.quantize_dynamic(pico_base().model, {nn.Linear}, dtype=torch.qint8)
    copy = wrap(small, toy_tokenizer(), "pico llama, 8 bits")  # type: ignore[arg-type]
    plain, wanted = logits(copy), materialised(base, stack) - logits(base)
    with PatchedModel(copy, quantised=True) as patched:
        patched.activate(stack)
        assert patched.form == "overlay"
        moved = logits(copy) - plain
        assert float(torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0)) > 0.95
        with pytest.raises(ConflictError, match="quantised weights"):
            patched.activate(stack, form="materialised")
        ref = replace(stack[0].header.sites[0], d_in=81)
        with pytest.raises(SiteError, match="81"):
            patched.activate([Patch(replace(stack[0].header, sites=(ref,)), stack[0].factors)])
    assert torch.equal(logits(copy), plain)


def test_the_output_itself_is_not_written_to() -> None:
    output, term = torch.ones(2, 3), (torch.ones(3, 1), torch.ones(1, 4))
    found = added(torch.ones(2, 4), output, [(term, torch.tensor([1]))], 2)
    assert found.tolist() == [[1.0] * 3, [5.0] * 3]
    assert torch.equal(output, torch.ones(2, 3))
