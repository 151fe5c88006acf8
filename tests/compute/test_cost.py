"""The counted operations against those that torch counts while it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pico import pico_base
from torch.utils.flop_counter import FlopCounterMode

from rompatch.compute.cost import naive_cost, replay_cost, shape_of
from rompatch.compute.replay import FullForward, Replay, Replayer
from rompatch.compute.rows import EditedRow, RowBatch, ValueRows, value_rows
from rompatch.edits import EditRequest
from rompatch.models import Base
from rompatch.sites import layer_modules
from rompatch.tokens import pad_id

LAYER = 1
CONTEXTS = ("{}", "It is a matter of fact. {}", "Trains leave from Berlin. {}")
REQUEST = EditRequest("Eiffel Tower", "The {} is located in the old town of", "Rome")


def prepared(model_type: str) -> tuple[Base, ValueRows]:
    base = pico_base(model_type)
    return base, value_rows(base.tokenizer, REQUEST, CONTEXTS, True)


def padded(rows: ValueRows) -> ValueRows:
    """The same with the padding that is run: the essence row, one token, as long as the others."""
    row = EditedRow([0] * rows.length, rows.length - rows.tail)
    return ValueRows((row,) * len(rows.rows), rows.target_ids)


def counted(replayer: Replayer, d_out: int) -> tuple[int, int]:
    """Operations of one step, forward and backward, by torch; attention's own products on a processor it leaves out,
    so they are compared at a width of zero."""
    delta = torch.zeros(1, 1, d_out, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        total = replayer.logits(delta).sum()
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(total, delta)
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
def test_the_cost_of_a_step_is_what_torch_counts(model_type: str) -> None:
    base, rows = prepared(model_type)
    site = base.site(LAYER)
    shape = shape_of(base.model, base.architecture, site.d_in)
    batch, layers = RowBatch((rows,)), layer_modules(base.model, base.architecture)
    forward, backward = counted(Replay(base.model, layers, [site], batch, pad_id=pad_id(base.tokenizer)), site.d_out)
    expected = replay_cost(replace(shape, hidden=0), LAYER, [padded(rows)])
    assert forward == pytest.approx(expected.forward, rel=1e-6)
    assert backward == pytest.approx(expected.backward, rel=1e-6)


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox"])
def test_the_cost_of_the_plain_loop_is_what_torch_counts(model_type: str) -> None:
    base, rows = prepared(model_type)
    site = base.site(LAYER)
    shape = shape_of(base.model, base.architecture, site.d_in)
    forward, backward = counted(
        FullForward(base.model, [], [site], RowBatch((rows,)), pad_id=pad_id(base.tokenizer)), site.d_out
    )
    expected = naive_cost(replace(shape, hidden=0), LAYER, [rows])
    assert (forward, backward) == pytest.approx((expected.forward, expected.backward), rel=1e-6)


def test_the_cost_grows_with_what_matters_and_with_nothing_else() -> None:
    base, rows = prepared("llama")
    shape = shape_of(base.model, base.architecture, base.site(LAYER).d_in)
    longer = value_rows(base.tokenizer, REQUEST, [f"old town old town. {one}" for one in CONTEXTS], True)
    ours = [replay_cost(shape, LAYER, [one]).forward for one in (rows, longer)]
    naive = [naive_cost(shape, LAYER, [one]).forward for one in (rows, longer)]
    assert ours[1] < 1.1 * ours[0], "a longer beginning costs attention only"
    assert naive[1] > 1.2 * naive[0]
    assert replay_cost(shape, LAYER + 1, [rows]).forward < replay_cost(shape, LAYER, [rows]).forward
