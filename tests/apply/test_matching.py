"""A change of one weight is taken apart into the patches that made it: pure, on random weights."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_solve import random_stack

from rompatch.apply.checkpoint import stored_tensors
from rompatch.apply.comparing import Pair, difference
from rompatch.apply.explaining import Explanation, explain
from rompatch.apply.matching import Directions, Evidence, likeliest
from rompatch.apply.solve import materialise, solve_site
from rompatch.patch import SiteFactors

N = 5
D_OUT, D_IN = 24, 40
HALVES = (torch.float16, torch.bfloat16)


def evidence_of(weight: np.ndarray, edited: np.ndarray, stack: list[SiteFactors], *, transposed: bool) -> Evidence:
    evidence = Evidence(Directions.of(stack), len(weight), transposed=transposed)
    before, after = (weight.T, edited.T) if transposed else (weight, edited)
    for rows in (slice(0, 7), slice(7, len(before))):
        evidence.add(rows, before[rows], after[rows])
    return evidence


@pytest.mark.parametrize("transposed", [False, True])
@given(st.integers(0, 999), st.sets(st.integers(0, N - 1)))
def test_the_members_of_a_sum_are_found(transposed: bool, seed: int, members: set[int]) -> None:
    weight, stack = random_stack(seed, N, D_IN, D_OUT)
    chosen = [stack[index] for index in sorted(members)]
    edited = weight + solve_site(chosen).dense() if chosen else weight.copy()
    assert likeliest(evidence_of(weight, edited, stack, transposed=transposed)) == tuple(sorted(members))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_residual_of_every_set_is_that_of_a_naive_difference(transposed: bool) -> None:
    weight, stack = random_stack(3, N, D_IN, D_OUT)
    stack[4] = SiteFactors(**{**vars(stack[3]), "value": stack[3].value + 1})  # one subject: their keys are merged
    edited = weight + solve_site(stack[1:4]).dense() + 0.01 * np.random.default_rng(0).normal(size=weight.shape)
    evidence, change = evidence_of(weight, edited, stack, transposed=transposed), edited - weight
    for size in range(N + 1):
        for members in combinations(range(N), size):
            delta = solve_site([stack[index] for index in members]).dense() if members else np.zeros_like(change)
            naive = np.linalg.norm(change - delta) / np.linalg.norm(change)
            assert evidence.residual(members) == pytest.approx(naive, rel=1e-6)


def test_of_two_patches_on_one_subject_the_right_one_is_found() -> None:
    weight, stack = random_stack(5, N, D_IN, D_OUT)
    other = np.random.default_rng(9).normal(size=D_OUT).astype(np.float32)
    stack[1] = SiteFactors(**{**vars(stack[0]), "value": stack[0].base_out + other, "v": 2 * stack[0].v})
    for members in ((0, 3), (1, 3), (0, 1, 3), (1,)):
        edited = weight + solve_site([stack[index] for index in members]).dense()
        assert likeliest(evidence_of(weight, edited, stack, transposed=False)) == members


def saved(folder: Path, tensor: torch.Tensor) -> Path:
    folder.mkdir()
    save_file({"w": tensor.contiguous()}, folder / "model.safetensors")
    return folder


def explained(
    tmp_path: Path,
    stored: torch.Tensor,
    after: torch.Tensor,
    stack: list[SiteFactors],
    *known: tuple[str, tuple[int, ...]],
    transposed: bool = False,
) -> Explanation:
    base, found = saved(tmp_path / "base", stored), saved(tmp_path / "found", after)
    pair = Pair(base, stored_tensors(base)["w"], found, stored_tensors(found)["w"])
    return explain(pair, stack, known, transposed=transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("members", [(2,), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_a_weight_is_made_again_bit_for_bit(
    tmp_path: Path, members: tuple[int, ...], dtype: torch.dtype, transposed: bool
) -> None:
    weight, stack = random_stack(1, N, D_IN, D_OUT)
    stored = torch.from_numpy(weight.T.copy() if transposed else weight).to(dtype)
    after = materialise(stored, solve_site([stack[index] for index in members]), transposed=transposed)
    found = explained(tmp_path, stored, after, stack, transposed=transposed)
    assert (found.members, found.match, found.remainder) == (members, "exact", None)
    assert found.origin == "search"


def test_known_sets_are_tried_first_and_named(tmp_path: Path) -> None:
    weight, stack = random_stack(1, N, D_IN, D_OUT)
    stored = torch.from_numpy(weight).float()
    after = materialise(stored, solve_site(stack[:2]), transposed=False)
    found = explained(tmp_path, stored, after, stack, ("manifest", (3, 4)), ("revision 2", (1, 0)), ("late", (0, 1)))
    assert (found.members, found.origin, found.match) == ((0, 1), "revision 2", "exact")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_sum_in_another_order_is_explained_up_to_rounding(tmp_path: Path, dtype: torch.dtype) -> None:
    weight, stack = random_stack(2, N, D_IN, D_OUT)
    stored = torch.from_numpy(weight).to(dtype)
    parts = torch.from_numpy(solve_site(stack[:3]).dense()).float() * torch.tensor([0.1, 0.6, 0.3])[:, None, None]
    after = (((stored.float() + parts[0]) + parts[1]) + parts[2]).to(dtype)
    found = explained(tmp_path, stored, after, stack)
    assert found.members == (0, 1, 2)
    assert found.match in (("rounding",) if dtype == torch.float32 else ("exact", "neighbours", "rounding"))


@pytest.mark.parametrize("dtype", HALVES)
def test_an_edited_float32_weight_that_was_saved_in_half_is_made_again(tmp_path: Path, dtype: torch.dtype) -> None:
    weight, stack = random_stack(4, N, D_IN, D_OUT)
    stored = torch.from_numpy(weight).float()
    after = materialise(stored, solve_site(stack[1:3]), transposed=False).to(dtype)
    found = explained(tmp_path, stored, after, stack)
    assert (found.members, found.match) == ((1, 2), "exact")


@pytest.mark.parametrize("rank", [1, 3])
def test_what_comes_from_elsewhere_is_measured(tmp_path: Path, rank: int) -> None:
    weight, stack = random_stack(6, N, D_IN, D_OUT)
    rng = np.random.default_rng(8)
    strange = 0.05 * rng.normal(size=(D_OUT, rank)) @ rng.normal(size=(rank, D_IN))
    stored, delta = torch.from_numpy(weight).float(), solve_site([stack[0], stack[2]]).dense()
    after = (stored.double() + torch.from_numpy(delta + strange)).float()
    found = explained(tmp_path, stored, after, stack)
    assert found.members == (0, 2)
    assert found.match is None
    assert found.remainder is not None
    assert found.remainder.rank == rank
    assert found.remainder.of_weight == pytest.approx(np.linalg.norm(strange) / np.linalg.norm(weight), rel=1e-4)
    assert found.remainder.of_change == pytest.approx(
        np.linalg.norm(strange) / np.linalg.norm(strange + delta), rel=1e-4
    )


def test_noise_has_every_rank_and_no_patch(tmp_path: Path) -> None:
    weight, stack = random_stack(7, N, 60, 50)
    stored = torch.from_numpy(weight).float()
    noise = 1e-3 * torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape)).float()
    found = explained(tmp_path, stored, stored + noise, stack)
    assert (found.members, found.match) == ((), None)
    assert found.remainder is not None
    assert found.remainder.rank is None
    assert found.remainder.of_change == pytest.approx(1)
    (tmp_path / "again").mkdir()
    assert explained(tmp_path / "again", stored, stored + noise, []).remainder == found.remainder


@pytest.mark.parametrize("dtype", HALVES)
def test_the_base_in_another_dtype_is_rounded_and_a_change_is_not(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = torch.from_numpy(random_stack(1, 2, D_IN, D_OUT)[0]).float()
    base, half = saved(tmp_path / "base", stored), saved(tmp_path / "half", stored.to(dtype))
    changed = stored.clone()
    changed[3, 3] += 1
    other, whole = saved(tmp_path / "other", changed.to(dtype)), saved(tmp_path / "whole", stored.to(dtype).float())

    def kind(one: Path, two: Path) -> str:
        return difference(Pair(one, stored_tensors(one)["w"], two, stored_tensors(two)["w"])).kind

    assert [kind(base, base), kind(base, half), kind(half, whole)] == ["equal", "rounded", "rounded"]
    assert [kind(base, other), kind(base, whole)] == ["changed", "changed"]
