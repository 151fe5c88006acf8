"""The preset that a tuning run ends with: settings of the best candidate and the evidence for them, without dates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rompatch
from rompatch.errors import OutputError
from rompatch.patchfile.durable import atomic_write
from rompatch.store.bench import BenchRunRecord

if TYPE_CHECKING:
    from rompatch.models import Base

_MACHINE = ("precision",)
"""Hyper-parameters that a preset leaves to the machine."""


def check_out(out: Path, force: bool) -> None:
    """Refuse a preset that is there already, or has no folder.

    Raises:
        OutputError: so it is.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise OutputError(
            f"The preset {out} cannot be written.",
            expected="a file in a folder that exists",
            found="a folder" if out.is_dir() else f"no folder {out.absolute().parent}",
        )
    if out.exists() and not force:
        raise OutputError(f"The preset {out} exists.", next_step="Choose another --out, or add --force.")


def preset_of(base: Base, run: BenchRunRecord, dataset: str, standings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A preset (:mod:`rompatch.workflows.presets`).

    Args:
        run: the best candidate's.
        dataset: name of the file of records.
        standings: ``Standing.to_json()`` of every candidate that was scored, best first.
    """
    settings = run.settings
    return {
        "model_type": base.model_type,
        "n_layers": base.n_layers,
        "hidden_size": base.hidden_size,
        "layer": settings["layer"],
        "document_start": settings["document_start"],
        "hparams": {name: value for name, value in settings["hparams"].items() if name not in _MACHINE},
        "evidence": {
            "by": "rompatch tune",
            "rompatch": rompatch.__version__,
            "dataset": dataset,
            "sha256": settings["dataset"],
            "records": standings[0]["records"],
            "base": settings["base"],
            "statistics": run.environment["statistics"],
            "seed": settings["seed"],
            "precision": settings["hparams"]["precision"],
            "candidates": [_row(standing) for standing in standings],
        },
    }


def write_preset(out: Path, preset: Mapping[str, Any]) -> None:
    """Put *preset* at *out*, atomically.

    Raises:
        OutputError: writing failed.
    """
    atomic_write(out, (json.dumps(preset, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _row(standing: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: standing[name] for name in ("label", "layer", "hparams", "records", "failed")}
    for name, estimate in standing["scores"].items():
        row[name] = None if estimate is None else round(estimate["value"], 4)
    s = standing["scores"]["s"]
    row["s_half_width"] = None if s is None or s["half_width"] is None else round(s["half_width"], 4)
    return row
