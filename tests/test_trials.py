"""A model that refuses a call is remembered for it; a machine without memory is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pico import END, pico_base

from rompatch.compute import replaying
from rompatch.compute.replaying import can_replay
from rompatch.compute.rows import RowBatch, value_rows
from rompatch.edits import EditRequest
from rompatch.trials import is_refusal
from rompatch.verify import abilities
from rompatch.verify.abilities import abilities_of, known_abilities

NO_MEMORY = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")


@pytest.mark.parametrize(
    ("problem", "refusal"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), True),
        (NotImplementedError("no mask"), True),
        (KeyError("past_key_values"), True),
        (NO_MEMORY, False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (AssertionError("ours"), False),
        (OSError("disk"), False),
    ],
)
def test_a_refusal_is_what_the_model_says_of_the_call(problem: BaseException, refusal: bool) -> None:
    assert is_refusal(problem) is refusal


def failing_once(plain: Any, problem: Exception, at: int) -> Any:
    calls: list[int] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise problem
        return plain(*args, **kwargs)

    return run


def test_memory_that_ran_out_while_scoring_was_tried_says_nothing_about_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = pico_base("llama")
    pad = base.tokenizer.convert_tokens_to_ids(END)
    monkeypatch.setattr(abilities.Pass, "logits", failing_once(abilities.Pass.logits, NO_MEMORY, at=2))
    with pytest.raises(RuntimeError, match="not enough memory"):
        abilities_of(base.model, pad)
    assert known_abilities(base.model) is None
    assert abilities_of(base.model, pad).packs


def test_memory_that_ran_out_while_a_replay_was_tried_says_nothing_about_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = pico_base("llama")
    request = EditRequest("Eiffel Tower", "The {} is located in", "Rome")
    batch = RowBatch((value_rows(base.tokenizer, request, ("{}", "Trains. {}"), True),))
    monkeypatch.setattr(replaying.Replay, "logits", failing_once(replaying.Replay.logits, NO_MEMORY, at=1))
    with pytest.raises(RuntimeError, match="not enough memory"):
        can_replay(base, [base.site(1)], batch)
    assert can_replay(base, [base.site(1)], batch)
