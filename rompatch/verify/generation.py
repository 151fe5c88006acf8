"""Continuations of prompts, greedy or sampled, by the settings given here and never by the checkpoint's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import RequestError, SuiteError
from rompatch.hooks import evaluation_mode
from rompatch.offload import input_device
from rompatch.tokens import context_length, encode_prompt, pad, pad_id

MAX_ROWS = 16
"""Prompts generated side by side."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    document_start: bool,
    max_new_tokens: int = 30,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """The continuation of each prompt, without the prompt itself and without special tokens.

    Args:
        max_new_tokens: tokens at most; fewer when the model ends the text.
        sample: draw tokens instead of taking the likeliest. ``temperature``, ``top_k`` (0: all) and ``top_p`` (1: all)
            count only then.
        seed: of the draws; PyTorch's own random state is as before afterwards.

    Raises:
        RequestError: a setting is out of range.
        SuiteError: a prompt has no tokens, or does not fit into the model together with what is to come.
    """
    _check_settings(max_new_tokens, temperature, top_k, top_p)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        num_beams=1,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=_end_ids(model, tokenizer),
        **({"temperature": temperature, "top_k": top_k, "top_p": top_p} if sample else {}),
    )
    rows = [_prompt_ids(model, tokenizer, prompt, document_start, max_new_tokens) for prompt in prompts]
    texts: list[str] = []
    with torch.inference_mode(), evaluation_mode(model), _without_own_settings(model), _seeded(model, seed):
        for start in range(0, len(rows), MAX_ROWS):
            batch = pad(rows[start : start + MAX_ROWS], pad_id(tokenizer), side="left", device=input_device(model))
            ids: Any = model.generate(**batch.to_kwargs(), generation_config=settings)  # type: ignore[operator]
            new = ids[:, batch.input_ids.shape[1] :]
            texts.extend(str(tokenizer.decode(row, skip_special_tokens=True)) for row in new)
    return texts


def _prompt_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, document_start: bool, room: int
) -> list[int]:
    ids, limit = encode_prompt(tokenizer, prompt, document_start), context_length(model)
    if not ids:
        raise SuiteError(f"The prompt {prompt!r} has no tokens.", next_step="Write some text, or use --document-start.")
    if limit is not None and len(ids) + room > limit:
        raise SuiteError(
            f"The prompt {prompt[:80]!r} and {room} new tokens do not fit into the model.",
            expected=f"at most {limit} tokens together",
            found=f"{len(ids)} + {room}",
            next_step="Shorten the prompt or ask for fewer tokens.",
        )
    return ids


def _check_settings(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    for name, value, fine, expected in (
        ("number of new tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("temperature", temperature, 0 < temperature < float("inf"), "above 0"),
        ("top-k", top_k, top_k >= 0, "0 (all tokens) or more"),
        ("top-p", top_p, 0 < top_p <= 1, "above 0, at most 1"),
    ):
        if not fine:
            raise RequestError(f"The {name} is out of range.", expected=expected, found=value)


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Every token that ends a text: the checkpoint's (chat models have several) and the tokenizer's."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list | tuple) else [own])}
    return sorted(int(token_id) for token_id in ids if token_id is not None) or None


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Set the checkpoint's own settings aside inside: transformers would fill what is unset here from them
    (temperature, repetition penalty, ...).
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _seeded(model: PreTrainedModel, seed: int) -> Iterator[None]:
    devices = [input_device(model)] if input_device(model).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
