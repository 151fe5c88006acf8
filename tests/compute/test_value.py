"""v*: the optimisation of eq. 8 against a plain loop, and what it does when things go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pico import END, pico_base
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rompatch.compute.gather import encode_contexts, gather_keys
from rompatch.compute.methods.rome import compute
from rompatch.compute.methods.rome_hparams import RomeHparams
from rompatch.compute.replaying import make_replayer
from rompatch.compute.rows import RowBatch, ValueRows, value_rows
from rompatch.compute.value import Objective, OptimisedValue, StepLoss, ValueHparams, optimise_values
from rompatch.edits import EditRequest
from rompatch.errors import ComputeError, SubjectError, TargetError
from rompatch.models import Base
from rompatch.sites import Site

LAYER = 1
CONTEXTS = ("{}", "It is a matter of fact. {}", "Trains. {}")
REQUEST = EditRequest("Eiffel Tower", "The {} is located in", "Vienna, Berlin")
OnStep = Callable[[int, list[StepLoss]], None]
HPARAMS = ValueHparams(lr=0.3, steps=5, early_stop_loss=0.0)


def naive_rows(base: Base, request: EditRequest) -> tuple[list[tuple[list[int], int]], list[int]]:
    """(ids, index of the subject's last token) for every context with the target, and the target's ids.

    Counts tokens of the text up to the subject's end: right as long as a space follows the subject."""

    def ids(text: str) -> list[int]:
        return base.tokenizer(text, add_special_tokens=False).input_ids

    start, target = base.tokenizer.convert_tokens_to_ids(END), ids(" " + request.target_new)
    rows = []
    for context in CONTEXTS:
        prompt = context.replace("{}", request.template.replace("{}", request.subject))
        through = prompt[: prompt.index(request.subject) + len(request.subject)]
        rows.append(([start, *ids(prompt), *target[:-1]], len(ids(through))))
    return rows, target


def naive_value(
    base: Base, sites: list[Site], request: EditRequest, hparams: ValueHparams
) -> tuple[Tensor, list[float]]:
    """Eq. 8 with the authors' details (docs/concepts.md), one row at a time, Adam written out.

    Several sites' deltas are steps of one vector, each in lengths of its own site's output."""
    tokenizer, model = base.tokenizer, base.model
    rows, target = naive_rows(base, request)
    essence = [tokenizer.convert_tokens_to_ids(END), *tokenizer(f"{request.subject} is a").input_ids]
    essence_last = len(tokenizer(request.subject).input_ids)
    norms: dict[int, Tensor] = {}

    def adding(layer: int, delta: Tensor, index: int) -> Callable[..., Tensor]:
        def hook(_module: object, _args: object, output: Tensor) -> Tensor:
            norms[layer] = output[0, index].detach().norm()
            edited = output.clone()
            edited[0, index] = output[0, index] + delta
            return edited

        return hook

    def run(ids: list[int], index: int, deltas: list[Tensor]) -> Tensor:
        handles = [
            site.module.register_forward_hook(adding(site.layer, delta, index))
            for site, delta in zip(sites, deltas, strict=True)
        ]
        logits = model(torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
        return logits.log_softmax(dim=-1)

    def objective(point: Tensor, base_log_probs: Tensor, lengths: list[Tensor]) -> Tensor:
        deltas = [part * length / lengths[0] for part, length in zip(point, lengths, strict=True)]
        losses = []
        for ids, index in rows:
            log_probs = run(ids, index, deltas)
            predicting = range(len(ids) - len(target), len(ids))
            losses.append(
                -sum(log_probs[at, token] for at, token in zip(predicting, target, strict=True)) / len(target)
            )
        edited = run(essence, essence_last, deltas)[essence_last]
        divergence = (edited.exp() * (edited - base_log_probs)).sum()
        return (
            sum(losses) / len(losses)
            + hparams.kl_factor * divergence
            + hparams.weight_decay * point.norm() / lengths[0] ** 2
            + hparams.norm_penalty
            * sum(delta.square().sum() / length**2 for delta, length in zip(deltas, lengths, strict=True))
        )

    zero = torch.zeros(len(sites), sites[0].d_out)
    base_log_probs = run(essence, essence_last, list(zero))[essence_last].detach()
    run(*rows[0], list(zero))
    lengths = [norms[site.layer] for site in sites]
    norm = lengths[0]
    delta, m, v, found = zero.clone(), zero.clone(), zero.clone(), []
    for step in range(1, hparams.steps + 1):
        delta = delta.detach().requires_grad_(True)
        loss = objective(delta, base_log_probs, lengths)
        found.append(float(loss.detach()))
        if found[-1] < hparams.early_stop_loss or step == hparams.steps:
            break
        (gradient,) = torch.autograd.grad(loss, delta)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        delta = delta.detach() - hparams.lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        if delta.norm() > hparams.clamp_norm_factor * norm:
            delta = delta * hparams.clamp_norm_factor * norm / delta.norm()
    return torch.stack([part * length / norm for part, length in zip(delta.detach(), lengths, strict=True)]), found


def prepared(base: Base, sites: list[Site]) -> tuple[Tensor, ValueRows]:
    rows = encode_contexts(base.tokenizer, REQUEST, CONTEXTS, True)
    outputs = torch.stack([gather_keys(base.model, base.tokenizer, site, rows).output for site in sites])
    return outputs, value_rows(base.tokenizer, REQUEST, CONTEXTS, True)


def optimised(
    base: Base,
    hparams: ValueHparams,
    *,
    layers: tuple[int, ...] = (LAYER,),
    plain: bool = False,
    on_step: OnStep | None = None,
) -> OptimisedValue:
    sites = [base.site(layer) for layer in layers]
    outputs, targets = prepared(base, sites)
    batch = RowBatch((targets,))
    replayer = make_replayer(base, sites, batch, replay=not plain)
    objective = Objective(replayer, batch, outputs.norm(dim=1)[None], hparams)
    (found,) = optimise_values(objective, outputs[None], hparams, on_step)
    if isinstance(found, ComputeError):
        raise found
    return found


@pytest.mark.parametrize(
    ("model_type", "plain"), [("gpt2", True), ("llama", False)], ids=["gpt2-full-forward", "llama-replay"]
)
@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_factor": 2.0, "weight_decay": 20.0}, {"clamp_norm_factor": 0.2}, {"norm_penalty": 3.0}],
    ids=["plain", "kl", "ball", "penalty"],
)
@pytest.mark.parametrize("layers", [(LAYER,), (LAYER, LAYER - 1)], ids=["one-site", "two-sites"])
def test_the_optimisation_equals_a_plain_loop(
    model_type: str, layers: tuple[int, ...], changes: dict[str, float], plain: bool
) -> None:
    base = pico_base(model_type)
    hparams = replace(HPARAMS, **changes)
    expected, losses = naive_value(base, [base.site(layer) for layer in layers], REQUEST, hparams)
    found = optimised(base, hparams, layers=layers, plain=plain)
    assert [loss.total for loss in found.losses] == pytest.approx(losses, rel=1e-3)
    assert found.deltas.shape == expected.shape
    assert (found.deltas - expected).norm() < 0.02 * expected.norm()
    assert expected.norm() > 0.1


def test_rows_and_targets_are_those_of_a_naive_count() -> None:
    base = pico_base("gpt2")
    rows, target = naive_rows(base, REQUEST)
    found = value_rows(base.tokenizer, REQUEST, CONTEXTS, True)
    assert [(row.ids, row.edit_index) for row in found.rows[:-1]] == rows
    assert found.target_ids.tolist() == target
    assert len(target) == found.n_target > 1, "an object of several tokens"
    assert base.tokenizer.decode(found.rows[-1].ids) == f"{END}Eiffel Tower"


def test_the_parts_of_the_loss_add_up_and_begin_at_no_change() -> None:
    found = optimised(pico_base("gpt2"), HPARAMS)
    assert len(found.losses) == HPARAMS.steps
    first = found.losses[0]
    assert first.kl == pytest.approx(0, abs=1e-6)
    assert first.weight_decay == 0
    for loss in found.losses:
        assert loss.total == pytest.approx(loss.target + loss.kl + loss.weight_decay, rel=1e-5)


def test_one_step_only_looks() -> None:
    found = optimised(pico_base("gpt2"), replace(HPARAMS, steps=1))
    assert len(found.losses) == 1
    assert found.deltas.norm() == 0


def test_it_stops_early_at_the_loss_asked_for() -> None:
    full = optimised(pico_base("llama"), replace(HPARAMS, steps=8))
    threshold = full.losses[3].total * 1.0001
    assert threshold < min(loss.total for loss in full.losses[:3])
    stopped = optimised(pico_base("llama"), replace(HPARAMS, steps=8, early_stop_loss=threshold))
    assert stopped.losses == full.losses[:4]
    same = optimised(pico_base("llama"), replace(HPARAMS, steps=4))
    assert torch.equal(stopped.deltas, same.deltas), "the delta that had that loss"


@pytest.mark.parametrize("factor", [0.01, 0.05])
def test_delta_stays_in_its_ball(factor: float) -> None:
    base = pico_base("gpt2")
    output, _ = prepared(base, [base.site(LAYER)])
    found = optimised(base, replace(HPARAMS, clamp_norm_factor=factor))
    assert found.deltas.norm() == pytest.approx(float(factor * output.norm()), rel=1e-5), "it wants to go further"


def test_every_step_is_reported() -> None:
    heard: list[tuple[int, list[StepLoss]]] = []
    found = optimised(pico_base("gpt2"), HPARAMS, on_step=lambda step, losses: heard.append((step, losses)))
    assert heard == [(step, [loss]) for step, loss in enumerate(found.losses, start=1)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_leaving_the_finite_numbers_is_an_error_that_says_where(value: float) -> None:
    base = pico_base("gpt2")
    base.model.transformer.ln_f.weight.data[3] = value
    with pytest.raises(ComputeError, match=r"finite numbers at step 1.*--dtype float32"):
        optimised(base, HPARAMS)


def test_gathered_keys_are_those_of_whole_forward_passes() -> None:
    base = pico_base("llama")
    site = base.site(LAYER)
    rows = encode_contexts(base.tokenizer, REQUEST, CONTEXTS, True)
    found = gather_keys(base.model, base.tokenizer, site, rows)
    for row, (ids, index), key in zip(rows, naive_rows(base, REQUEST)[0], found.keys, strict=True):
        seen: list[Tensor] = []
        handle = site.module.register_forward_hook(lambda _m, args, out: seen.extend([args[0], out]))  # noqa: B023
        base.model(torch.tensor([ids]))
        handle.remove()
        assert row.subject_last == index
        torch.testing.assert_close(key, seen[0][0, index], rtol=1e-4, atol=1e-5)
        if row is rows[0]:
            torch.testing.assert_close(found.output, seen[1][0, index], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.bare, key)


def test_a_prompt_longer_than_the_context_is_refused_wherever_the_subject_is() -> None:
    base = pico_base("gpt2")
    for template in ("old " * 200 + "{} is in", "{} is " + "old " * 200 + "in"):
        with pytest.raises(SubjectError, match="at most 128 tokens"):
            compute(
                base,
                EditRequest("Rome", template, "Paris"),
                site=base.site(LAYER),
                contexts=("{}",),
                statistics=None,
                hparams=RomeHparams(steps=1),
            )


def test_subject_and_object_in_one_token_are_refused() -> None:
    """Scripts without spaces have nothing between them: here both are the bytes of one trained token."""
    made = Tokenizer(models.BPE({"東": 0, "京": 1, "東京": 2, "a": 3}, [("東", "京")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    with pytest.raises(TargetError, match="share a token"):
        value_rows(tokenizer, EditRequest("東", "{}", "京"), ("{}",), False)
    rows = value_rows(tokenizer, EditRequest("東", "{}a", "京"), ("{}",), False).rows
    assert rows[0].ids == [0, 3]
