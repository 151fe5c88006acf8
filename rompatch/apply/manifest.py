"""``rompatch_manifest.json``: what a baked checkpoint says of itself, so that it can be made again and audited offline.

No time, no path and no machine is in it: the same base, patches and rompatch give the same bytes (docs/bake.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rompatch import __version__
from rompatch.apply.baked import MANIFEST, Rewritten, Written
from rompatch.apply.rounding import ROUNDING_LIMIT
from rompatch.errors import ModelError
from rompatch.patch import Patch, canonical_json

FORMAT = 2
MAX_BYTES = 1 << 28
_SHA256 = re.compile(r"[0-9a-f]{64}")

_LEFT_OUT = ("base", "contexts", "versions")
"""Fields of a patch's header that the manifest does not repeat; its id stands for them."""


@dataclass(frozen=True)
class Claim:
    """What a manifest says of a folder; nothing in it is believed without a hash.

    Args:
        patches: ids of the patches that are said to be inside.
        subjects: patch id to a few words about it.
        ridge: lambda of the joint solution.
        tensors: name in the checkpoint to (sha256 before, sha256 after), of those that are said to be edited.
        base_tensors: name to sha256 of the base's tensor, as far as they were compared when it was written.
        base: how the base was named.
    """

    patches: tuple[str, ...]
    subjects: Mapping[str, str]
    ridge: float
    tensors: Mapping[str, tuple[str, str]]
    base_tensors: Mapping[str, str]
    base: str


def manifest_text(source: str, patches: Sequence[Patch], ridge: float, written: Written) -> str:
    """The file's text: canonical JSON and a line end."""
    headers = [(patch.id, patch.header.to_json()) for patch in sorted(patches, key=lambda patch: patch.id)]
    value = {
        "rompatch_manifest": FORMAT,
        "base": {**vars(patches[0].header.base), "source": source},
        "base_tensors": dict(written.base_tensors),
        "joint_ridge": ridge,
        "patches": [
            {"id": patch_id, **{name: value for name, value in header.items() if name not in _LEFT_OUT}}
            for patch_id, header in headers
        ],
        "rounding_limit": ROUNDING_LIMIT,
        "tensors": [rewritten_json(tensor) for tensor in written.rewritten],
        "versions": {"rompatch": __version__, "numpy": np.__version__},
    }
    return canonical_json(value) + "\n"


def rewritten_json(tensor: Rewritten) -> dict[str, Any]:
    """One rewritten tensor as a JSON object (docs/json.md)."""
    rounding = [{**vars(one), "swallowed": one.swallowed} for one in tensor.rounding]
    return {**vars(tensor), "shape": list(tensor.shape), "rounding": rounding}


def read_manifest(folder: Path) -> Claim | None:
    """What the manifest in *folder* claims; None where there is none.

    Raises:
        ModelError: it is there and cannot be read.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        return _claim(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(
            f"The manifest {path} cannot be read.",
            expected="what `rompatch bake` wrote (docs/bake.md)",
            found=f"{type(error).__name__}: {error}"[:200],
            next_step="Delete or restore it; `rompatch audit` works without a manifest too.",
        ) from error


def _claim(data: Any) -> Claim:
    if data["rompatch_manifest"] not in (1, FORMAT):
        raise ValueError(f"format {data['rompatch_manifest']!r}, and this rompatch knows 1 and {FORMAT}")
    subjects = {_hash(patch["id"]): _label(patch) for patch in data["patches"]}
    tensors = {
        str(tensor["stored_as"]): (_hash(tensor["sha256_before"]), _hash(tensor["sha256_after"]))
        for tensor in data.get("tensors", ())
    }
    return Claim(
        patches=tuple(sorted(subjects)),
        subjects=subjects,
        ridge=float(data["joint_ridge"]),
        tensors=tensors,
        base_tensors={str(name): _hash(sha256) for name, sha256 in data["base_tensors"].items()},
        base=str(data["base"]["source"]),
    )


def _label(patch: Mapping[str, Any]) -> str:
    """As :attr:`rompatch.patch.PatchHeader.label`."""
    title, request = patch.get("title"), patch.get("request")
    return str(title) if request is None else f"{request['subject']} -> {request['target_new']}"


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{str(value)[:80]!r} is not a sha256")
    return value
