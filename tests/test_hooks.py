"""Hooks undo themselves, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from rompatch.hooks import (
    StopForward,
    capture_inputs,
    capture_outputs,
    edit_output,
    low_rank_added,
    recomputed,
    until_stopped,
)


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


HOOKS: list[Callable[[nn.Module], AbstractContextManager[object]]] = [
    capture_inputs,
    lambda module: capture_inputs(module, stop=True),
    lambda module: edit_output(module, lambda output: output + 1),
    capture_outputs,
    lambda module: capture_outputs(module, stop=True),
    lambda module: low_rank_added(module, torch.ones(len(module.weight), 1), torch.ones(1, module.weight.shape[1])),  # type: ignore[union-attr,arg-type]
]


def n_hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_every_input_is_captured_in_order(network: nn.Sequential) -> None:
    rows = torch.eye(3)
    with capture_inputs(network[2]) as seen:
        for row in rows:
            network(row)
    torch.testing.assert_close(torch.stack(seen), network[1](network[0](rows)))
    network(rows)
    assert len(seen) == 3, "nothing is captured afterwards"


def test_stopping_ends_the_pass_at_the_module(network: nn.Sequential) -> None:
    later = []
    network[2].register_forward_hook(lambda *_: later.append(1))
    with capture_inputs(network[2], stop=True) as seen, until_stopped():
        network(torch.eye(3))
    assert len(seen) == 1
    assert not later


def test_the_stop_signal_passes_where_nobody_waits_for_it(network: nn.Sequential) -> None:
    with pytest.raises(StopForward), capture_inputs(network[0], stop=True):
        network(torch.eye(3))
    assert n_hooks(network) == 0


def test_waiting_for_the_stop_lets_other_exceptions_through() -> None:
    with pytest.raises(ZeroDivisionError), until_stopped():
        raise ZeroDivisionError


def test_an_output_is_replaced_while_the_context_lasts(network: nn.Sequential) -> None:
    rows = torch.eye(3)
    plain = network(rows)
    with edit_output(network[2], lambda output: 2 * output):
        torch.testing.assert_close(network(rows), 2 * plain)
    torch.testing.assert_close(network(rows), plain, rtol=0, atol=0)


def test_a_replaced_output_carries_gradients(network: nn.Sequential) -> None:
    delta = torch.zeros(2, requires_grad=True)
    with edit_output(network[2], lambda output: output + delta):
        (gradient,) = torch.autograd.grad(network(torch.eye(3)).sum(), delta)
    assert gradient.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_gone_afterwards_even_if_the_module_never_ran(
    network: nn.Sequential, hook: Callable[[nn.Module], AbstractContextManager[object]]
) -> None:
    with hook(network[0]):
        assert n_hooks(network) == 1
    assert n_hooks(network) == 0


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt])
def test_a_hook_is_gone_after_an_exception(
    network: nn.Sequential,
    hook: Callable[[nn.Module], AbstractContextManager[object]],
    raised: type[BaseException],
) -> None:
    with pytest.raises(raised), hook(network[0]):
        raise raised
    assert n_hooks(network) == 0


def test_a_hook_is_gone_after_its_edit_failed(network: nn.Sequential) -> None:
    def fails(_output: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"), edit_output(network[0], fails):
        network(torch.eye(3))
    assert n_hooks(network) == 0
    assert network(torch.eye(3)).shape == (3, 2)


def test_recomputed_layers_keep_their_inputs_alone_and_give_the_same_gradient(network: nn.Sequential) -> None:
    network.requires_grad_(False)
    rows = torch.eye(3)

    def run(layers: list[nn.Module]) -> tuple[torch.Tensor, set[int]]:
        kept: set[int] = set()
        delta = torch.zeros(3, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):  # type: ignore[func-returns-value]
            with recomputed(layers):
                loss = network(rows + delta).square().sum()
            (gradient,) = torch.autograd.grad(loss, delta)
        return gradient, kept

    weights = {parameter.data_ptr() for parameter in network.parameters() if parameter.dim() > 1}
    (expected, kept), (found, kept_then) = run([]), run([network[0], network[1], network[2]])
    assert kept >= weights
    assert not kept_then & weights
    assert torch.equal(found, expected)
    assert not any("forward" in vars(layer) for layer in network)


def test_recomputing_ends_with_its_context_also_after_an_exception(network: nn.Sequential) -> None:
    before = network[0].forward
    with pytest.raises(KeyError), recomputed(network):
        assert network[0].forward != before
        raise KeyError
    assert network[0].forward == before


def test_captured_outputs_are_the_first_of_a_tuple_and_the_hook_is_gone_after_an_error() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
            return 2 * x, "more"

    module = Pair()
    with pytest.raises(ValueError, match="stop"), capture_outputs(module) as seen:
        module(torch.ones(2))
        raise ValueError("stop")
    module(torch.zeros(2))
    assert [one.tolist() for one in seen] == [[2.0, 2.0]]
    with capture_outputs(module, stop=True) as stopped, until_stopped():
        module(torch.ones(1))
        raise AssertionError("the pass goes on")
    assert len(stopped) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_low_rank_term_is_added_and_taken_away(dtype: torch.dtype) -> None:
    module = nn.Linear(3, 2).to(dtype)
    left, right, x = torch.randn(2, 1).double(), torch.randn(1, 3).double(), torch.randn(4, 3).to(dtype)
    before = module(x)
    with low_rank_added(module, 1e6 * left, 1e-6 * right):  # beyond float16 in parts, not as a whole
        after = module(x)
    torch.testing.assert_close(after.double(), before.double() + x.double() @ right.T @ left.T, rtol=2e-2, atol=2e-2)
    assert after.dtype == dtype
    assert torch.equal(module(x), before)
