"""generate: what the base says, what the edited model says, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rompatch.errors import RequestError
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import BaseOptions, OpenStore


@dataclass(frozen=True)
class GenerateOptions(BaseOptions):
    """What ``generate`` may be told beside the base.

    Args:
        compare: the base's continuation too.
        patches: names of patches to have active instead of the stack in force.
        max_new_tokens: tokens at most.
        sample, temperature, top_k, top_p, seed: draw tokens instead of taking the likeliest.
        document_start: start with a document separator. None does what the patches' own prompts do; it does where
            they differ, and where there is no patch.
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
    records = store.chosen(options.patches)
    options = replace(
        options,
        spec=options.spec_of(store, records),
        document_start=document_start_of(records) if options.document_start is None else options.document_start,
    )
    edited = _continue(store, prompts, options, records)
    base = _continue(store, prompts, options, ()) if options.compare else [None] * len(prompts)
    return tuple(Generated(prompt, text, was) for prompt, text, was in zip(prompts, edited, base, strict=True))


def document_start_of(records: Sequence[PatchRecord]) -> bool:
    """What all of *records* have; True where they differ or there are none."""
    return {record.header.document_start for record in records} != {False}


def _continue(
    store: OpenStore, prompts: Sequence[str], options: GenerateOptions, records: Sequence[PatchRecord]
) -> list[str]:
    from rompatch.verify.generation import generate as continuations

    names = [record.id for record in records]
    with store.session(names, spec=options.spec, device=options.device) as model:
        return continuations(
            model,
            store.base(options.spec, device=options.device).tokenizer,
            prompts,
            document_start=options.document_start is not False,
            max_new_tokens=options.max_new_tokens,
            sample=options.sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
