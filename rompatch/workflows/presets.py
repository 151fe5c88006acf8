"""Presets: the layer and hyper-parameters to use for a model, and how they were found.

A preset is a JSON object::

    {"model_type": "llama", "n_layers": 30, "hidden_size": 576,
     "layer": 4, "document_start": true, "hparams": {"keys": "mixed"}, "evidence": "..."}

The package ships some (``rompatch/presets/*.json``); ``--preset FILE`` names another; flags win over both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import RequestError
from rompatch.workflows.hparams import sound_hparams

if TYPE_CHECKING:
    from rompatch.models import Base

_FIELDS = {"model_type", "n_layers", "hidden_size", "layer", "document_start", "hparams", "evidence"}
_KINDS = {"layer": (int, type(None)), "document_start": (bool,), "hparams": (dict,)}


@dataclass(frozen=True)
class Preset:
    """What to use where no flag says otherwise. ``layer`` None: the architecture's preset layer."""

    layer: int | None = None
    document_start: bool = True
    hparams: Mapping[str, Any] = field(default_factory=dict)
    source: str = "built-in defaults"


def preset_for(base: Base, path: Path | None = None) -> Preset:
    """The preset in *path*, else the shipped one for this shape of model, else the defaults.

    Raises:
        RequestError: *path* cannot be read, or holds unknown fields.
    """
    if path is not None:
        return preset_in(path)
    for name, data in _shipped():
        if (data["model_type"], data["n_layers"], data["hidden_size"]) == (
            base.model_type,
            base.n_layers,
            base.hidden_size,
        ):
            return _preset(data, name)
    return Preset()


def preset_in(path: Path) -> Preset:
    """The preset in a file.

    Raises:
        RequestError: it cannot be read, holds unknown fields, or hyper-parameters that are none; it names the file.
    """
    preset = _preset(_read(path), str(path))
    try:
        sound_hparams(preset.hparams)
    except RequestError as problem:
        raise RequestError(
            f"The preset {path} cannot be used. {problem.message}",
            expected=problem.expected,
            found=problem.found,
            next_step="Correct the file (docs/presets.md has its fields).",
        ) from problem
    return preset


@cache
def _shipped() -> tuple[tuple[str, dict[str, Any]], ...]:
    folder = resources.files("rompatch").joinpath("presets")
    if not folder.is_dir():  # an installation without them still has the defaults
        return ()
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
    return tuple((entry.name, json.loads(entry.read_text(encoding="utf-8"))) for entry in files)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise RequestError(
            f"The preset {path} cannot be read.", expected="a JSON object", found=str(problem)
        ) from problem
    if not isinstance(data, dict) or set(data) - _FIELDS:
        found = sorted(set(data) - _FIELDS) if isinstance(data, dict) else type(data).__name__
        raise RequestError(
            f"The preset {path} has other fields than a preset.",
            expected=f"an object with {', '.join(sorted(_FIELDS))}",
            found=", ".join(found) if isinstance(found, list) else found,
            next_step="Correct the file (docs/presets.md has its fields).",
        )
    for name, kinds in _KINDS.items():
        if name in data and type(data[name]) not in kinds:
            raise RequestError(f"The preset {path} has a {name} that is not one.", found=repr(data[name]))
    return data


def _preset(data: Mapping[str, Any], source: str) -> Preset:
    return Preset(
        layer=data.get("layer"),
        document_start=bool(data.get("document_start", True)),
        hparams=dict(data.get("hparams", {})),
        source=source,
    )
