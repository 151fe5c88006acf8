"""An export against the session it was made from: the same prompts, token by token, in the export's own client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rompatch.export.clients import Answer

TOLERANCES = {"float32": 0.001, "float16": 0.01, "bfloat16": 0.05, "gguf": 0.05}
"""The largest difference of a next token's probability that is put down to rounding: by the coarser dtype of adapter
and base, or for llama.cpp, whose products are quantised with the weights."""


@dataclass(frozen=True)
class CheckedPrompt:
    """One prompt of a patch.

    Args:
        patch_id: whose prompt it is.
        prompt: the text.
        target: the new object.
        session: probability of the object's first token in the session.
        client: the same in the client; None where it is not among the likeliest that the client names.
        difference: largest difference of a token's probability between the two.
    """

    patch_id: str
    prompt: str
    target: str
    session: float
    client: float | None
    difference: float


@dataclass(frozen=True)
class ExportCheck:
    """What came of a check.

    Args:
        client: the program and its version; without a version where it is not there.
        ran: whether it ran.
        reason: why not, and what to do; "" where it ran.
        tolerance: the largest difference allowed.
        prompts: what was compared.
    """

    client: str
    ran: bool
    reason: str
    tolerance: float
    prompts: tuple[CheckedPrompt, ...] = ()

    @property
    def difference(self) -> float | None:
        """The largest difference of all prompts; None where nothing was compared."""
        return max((prompt.difference for prompt in self.prompts), default=None)

    @property
    def passed(self) -> bool | None:
        """Whether client and session agree within the tolerance; None where nothing was compared."""
        return None if self.difference is None else self.difference <= self.tolerance

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "client": self.client,
            "ran": self.ran,
            "reason": self.reason or None,
            "tolerance": self.tolerance,
            "difference": self.difference,
            "passed": self.passed,
            "prompts": [dict(vars(prompt)) for prompt in self.prompts],
        }


def largest_difference(session: Tensor, client: Answer) -> float:
    """max |p_session - p_client| over the tokens that the client named, and over the session's likeliest one."""
    probabilities: list[float] = session.tolist()
    tokens = {*client, int(session.argmax())}
    return max(abs(probabilities[token] - client.get(token, 0.0)) for token in tokens)


def compare(
    asked: Sequence[tuple[str, str, str, int]], session: Sequence[Tensor], client: Sequence[Answer]
) -> tuple[CheckedPrompt, ...]:
    """One record a prompt. *asked*: patch id, prompt, object, first token of the object."""
    return tuple(
        CheckedPrompt(patch, prompt, target, float(ours[token]), theirs.get(token), largest_difference(ours, theirs))
        for (patch, prompt, target, token), ours, theirs in zip(asked, session, client, strict=True)
    )
