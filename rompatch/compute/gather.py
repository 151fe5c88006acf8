"""Gather, then compute: one truncated forward pass, a small frozen record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rompatch.edits import PLACEHOLDER, EditRequest, fill
from rompatch.errors import SubjectError
from rompatch.hooks import capture_inputs, until_stopped
from rompatch.offload import input_device
from rompatch.sites import Site
from rompatch.tokens import EncodedSubject, context_length, encode_subject, pad, pad_id

ESSENCE_TEMPLATE = "{} is a"
"""The prompt that says what the subject is (eq. 8, p')."""


@dataclass(frozen=True)
class GatheredKeys:
    """What the site sees and says at the subject's last token.

    ``keys`` (n_prefixes, d_in) float32, row 0 the bare prompt's; ``output`` (d_out,) float32: the module's output
    (bias included) for the bare prompt.
    """

    keys: Tensor
    output: Tensor

    @property
    def bare(self) -> Tensor:
        """The bare prompt's key, (d_in,)."""
        return self.keys[0]


def contextual_prompts(request: EditRequest, contexts: Sequence[str]) -> list[tuple[str, int]]:
    """Each context with the request's prompt in its ``{}``: the text, and where the subject starts in it."""
    offset = request.template.index(PLACEHOLDER)
    return [(fill(context, request.prompt), context.index(PLACEHOLDER) + offset) for context in contexts]


def encode_contexts(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, contexts: Sequence[str], document_start: bool
) -> list[EncodedSubject]:
    """The prompts of :func:`contextual_prompts` in tokens, each with its subject's last token."""
    return [
        encode_subject(tokenizer, text, request.subject, start, document_start)
        for text, start in contextual_prompts(request, contexts)
    ]


def gather_keys(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site, rows: Sequence[EncodedSubject]
) -> GatheredKeys:
    """The site's inputs at each row's subject (eq. 6). The pass stops at the site and at the subject's last token.

    Raises:
        SubjectError: a row is longer than the model's context.
    """
    return gather_many(model, tokenizer, site, [rows])[0]


def gather_many(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    site: Site,
    groups: Sequence[Sequence[EncodedSubject]],
) -> list[GatheredKeys]:
    """:func:`gather_keys` of several requests in one pass: a group of rows each, the bare prompt's first.

    Raises:
        SubjectError: a row is longer than the model's context.
    """
    rows = [row for group in groups for row in group]
    check_length(model, max(row.subject_last + 1 for row in rows))
    batch = pad(
        [row.ids[: row.subject_last + 1] for row in rows], pad_id(tokenizer), side="right", device=input_device(model)
    )
    with torch.inference_mode(), capture_inputs(site.module, stop=True) as seen, until_stopped():
        model(**batch.to_kwargs(), use_cache=False)
    # OPT hands its MLP the tokens of all rows in one line: (n_rows * n_tokens, d_in).
    states = seen[0].reshape(*batch.input_ids.shape, -1)
    last = torch.tensor([row.subject_last for row in rows], device=states.device)
    keys = states[torch.arange(len(rows), device=states.device), last]
    first = torch.tensor([len(group) for group in groups]).cumsum(0) - torch.tensor([len(group) for group in groups])
    with torch.inference_mode():
        outputs = site.module(keys[first.to(keys.device)]).float().cpu()
    parts = keys.float().cpu().split([len(group) for group in groups])
    return [GatheredKeys(part.clone(), output.clone()) for part, output in zip(parts, outputs, strict=True)]


def check_length(model: PreTrainedModel, n_tokens: int) -> None:
    """Raises SubjectError when *n_tokens* do not fit the model's context."""
    limit = context_length(model)
    if limit is not None and n_tokens > limit:
        raise SubjectError(
            "The prompt with its subject is longer than the model's context.",
            expected=f"at most {limit} tokens",
            found=f"{n_tokens} tokens",
            next_step="Shorten the subject or the prompt.",
        )
