"""The sequences that an optimisation of v* runs, for one request or many, and where their logits are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rompatch.compute.gather import ESSENCE_TEMPLATE, contextual_prompts
from rompatch.edits import EditRequest, fill
from rompatch.errors import TargetError
from rompatch.tokens import encode_pair, encode_subject


@dataclass(frozen=True)
class EditedRow:
    """One sequence: its ids and the index of the token at which delta is added to the site's output."""

    ids: list[int]
    edit_index: int

    @property
    def tail(self) -> int:
        """Tokens from the edited one to the end: the part that delta changes."""
        return len(self.ids) - self.edit_index


@dataclass(frozen=True)
class ValueRows:
    """What one request's optimisation runs: target rows, the essence row last, and the target's ids (n_target,).

    A target row ends before the target's last token, which is only predicted: its last ``n_target`` positions are read.
    The essence row ends at the subject's last token and is read there.
    """

    rows: tuple[EditedRow, ...]
    target_ids: Tensor

    @property
    def n_target(self) -> int:
        """Tokens of the target."""
        return len(self.target_ids)

    @property
    def tail(self) -> int:
        """The longest tail of its rows; no shorter than what is read."""
        return max(self.n_target, *(row.tail for row in self.rows))

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return max(len(row.ids) for row in self.rows)


@dataclass(frozen=True)
class RowBatch:
    """The rows of several requests, one after the other, and the positions of them that are read.

    First come the reads of target tokens, in the order of requests, rows and tokens; behind them one read a request,
    of its essence prompt. So both kinds are slices of the logits, which are too large to be copied for nothing.
    """

    requests: tuple[ValueRows, ...]

    @property
    def rows(self) -> list[EditedRow]:
        """Every row of every request."""
        return [row for request in self.requests for row in request.rows]

    @property
    def n_target_reads(self) -> int:
        """How many reads are of target tokens."""
        return len(self.targets)

    @cached_property
    def row_request(self) -> Tensor:
        """The request that each row belongs to, (n_rows,)."""
        return _repeated([len(request.rows) for request in self.requests])

    @cached_property
    def target_request(self) -> Tensor:
        """The request that each read of a target token belongs to, (n_target_reads,)."""
        return _repeated([(len(request.rows) - 1) * request.n_target for request in self.requests])

    @cached_property
    def targets(self) -> Tensor:
        """The token wanted at each read of a target token, (n_target_reads,)."""
        return torch.cat([request.target_ids.repeat(len(request.rows) - 1) for request in self.requests])

    def read_positions(self, width: int) -> Tensor:
        """Indices of the reads, (n_target_reads + n_requests,), into rows of *width* tokens, aligned at their ends and
        laid one after the other."""
        targets, essence, first = [], [], 0
        for request in self.requests:
            ends = (torch.arange(len(request.rows)) + first + 1) * width
            targets.append((ends[:-1, None] + torch.arange(-request.n_target, 0)).reshape(-1))
            essence.append(ends[-1:] - 1)
            first += len(request.rows)
        return torch.cat([*targets, *essence])

    def edit_positions(self, width: int) -> Tensor:
        """Indices of the edited tokens, (n_rows,), into rows laid out as for :meth:`read_positions`."""
        return torch.tensor([(i + 1) * width - row.tail for i, row in enumerate(self.rows)])

    def narrow(self, kept: Sequence[int]) -> RowBatch:
        """The batch of the requests *kept* alone."""
        return RowBatch(tuple(self.requests[i] for i in kept))


def _repeated(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def value_rows(
    tokenizer: PreTrainedTokenizerBase, request: EditRequest, contexts: Sequence[str], document_start: bool
) -> ValueRows:
    """The rows of eq. 8: every context with prompt and target (its last token is only predicted), and "{s} is a".

    Raises:
        SubjectError, TargetError: subject or target have no token of their own.
    """
    rows = []
    target_ids: list[int] = []
    for text, start in contextual_prompts(request, contexts):
        pair = encode_pair(tokenizer, text, request.target_new, document_start)
        subject = encode_subject(tokenizer, text, request.subject, start, document_start)
        if subject.subject_last >= len(pair.prompt_ids):
            raise TargetError(
                f"The subject {request.subject!r} and the object {request.target_new!r} share a token.",
                expected="words between them, or a space",
                found=f"the template {request.template!r}",
                next_step="Choose a template in which the object does not follow the subject at once.",
            )
        rows.append(EditedRow([*pair.prompt_ids, *pair.target_ids[:-1]], subject.subject_last))
        target_ids = target_ids or pair.target_ids
    essence = encode_subject(
        tokenizer,
        fill(ESSENCE_TEMPLATE, request.subject),
        request.subject,
        ESSENCE_TEMPLATE.index("{}"),
        document_start,
    )
    rows.append(EditedRow(essence.ids[: essence.subject_last + 1], essence.subject_last))
    return ValueRows(tuple(rows), torch.tensor(target_ids))
