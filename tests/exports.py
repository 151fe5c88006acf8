"""Stacks of random patches, in a store and out of one, and what the session says with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from random_patches import random_patch
from torch import Tensor

from rompatch.apply.session import PatchedModel
from rompatch.apply.solve import solve_stack
from rompatch.edits import EditRequest
from rompatch.export.lowrank import SiteDelta, factorise
from rompatch.export.provenance import Origin
from rompatch.models import Base
from rompatch.patch import Patch
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

IDS = torch.arange(1, 24)[None]
"""Some tokens, (1, 23)."""


def stack_of(base: Base, n: int, layers: Sequence[int] = (1,)) -> list[Patch]:
    """*n* random patches, dealt out over *layers*."""
    return [random_patch(base, seed, layer=layers[seed % len(layers)]) for seed in range(n)]


def deltas_of(patches: Iterable[Patch], max_rank: int | None = None) -> tuple[SiteDelta, ...]:
    stack = list(patches)
    return factorise(solve_stack(stack), [site for patch in stack for site in patch.header.sites], max_rank)


def origin_of(patches: Sequence[Patch]) -> Origin:
    return Origin(patches[0].header.base, tuple(sorted(patch.id for patch in patches)))


def session_logits(base: Base, patches: Iterable[Patch], ids: Tensor = IDS) -> Tensor:
    with PatchedModel(base) as patched, torch.inference_mode():
        patched.activate(patches)
        logits: Tensor = patched.model(ids).logits
    return logits


def readable(patch: Patch) -> Patch:
    """The same patch with a request in the few letters that the tokenizer of a pico GGUF file has."""
    request = EditRequest("abcdefgh"[patch.header.seed], "the {} the", "the", "a")
    return replace(patch, header=replace(patch.header, request=request))


def put_patches(store: Store, spec: BaseSpec, patches: Iterable[Patch], *, apply: bool = True) -> list[str]:
    """Record *patches* in the store, as ``create`` would, and make them the stack."""
    ids = []
    for patch in patches:
        path = store.blobs.put(patch)
        record = store.ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
        store.remember_spec(record.base_id, spec)
        ids.append(record.id)
    if apply:
        store.apply(*ids)
    return ids
