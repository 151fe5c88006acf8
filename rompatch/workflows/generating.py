"""generate: what the base says, what the edited model says, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rompatch.errors import RequestError
from rompatch.workflows.opened import BaseSpec, OpenStore


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate`` may be told.

    Args:
        compare: the base's continuation too.
        patches: names of patches to have active instead of the stack in force.
        max_new_tokens: tokens at most.
        sample, temperature, top_k, top_p, seed: draw tokens instead of taking the likeliest.
        document_start: None starts with a document separator, as the patches' own prompts do.
    """

    compare: bool = False
    patches: tuple[str, ...] | None = None
    max_new_tokens: int = 20
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    document_start: bool | None = None
    spec: BaseSpec | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Generated:
    """One prompt and its continuations; ``base`` is None unless both were asked for."""

    prompt: str
    edited: str
    base: str | None = None

    def to_json(self) -> dict[str, Any]:
        """``{"prompt", "edited", "base"}``."""
        return dict(vars(self))


def generate(store: OpenStore, prompts: Sequence[str], options: GenerateOptions | None = None) -> tuple[Generated, ...]:
    """Continue *prompts* with the stack in force (or the patches named). Reads only.

    Raises:
        RequestError: no prompt, or a setting out of range.
        ModelError, BaseMismatchError: the base cannot be loaded, or is not the patches' own.
    """
    options = options or GenerateOptions()
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise RequestError("There is no prompt to continue.", next_step='rompatch generate "The Eiffel Tower is in"')
    edited = _continue(store, prompts, options, options.patches)
    base = _continue(store, prompts, options, ()) if options.compare else [None] * len(prompts)
    return tuple(Generated(prompt, text, was) for prompt, text, was in zip(prompts, edited, base, strict=True))


def _continue(
    store: OpenStore, prompts: Sequence[str], options: GenerateOptions, patches: tuple[str, ...] | None
) -> list[str]:
    from rompatch.verify.generation import generate as continuations

    document_start = True if options.document_start is None else options.document_start
    with store.session(patches, spec=options.spec, device=options.device) as model:
        return continuations(
            model,
            store.base(options.spec).tokenizer,
            prompts,
            document_start=document_start,
            max_new_tokens=options.max_new_tokens,
            sample=options.sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
