"""A stack as a LoRA adapter of PEFT: what transformers, PEFT and vLLM load beside the base.

Delta = B A is a LoRA of scale 1: ``lora_B`` is B (d_out, r), ``lora_A`` is A (r, d_in), in both orientations of the
weight, since PEFT transposes the product where ``fan_in_fan_out`` says that the module stores W^T (Conv1D).

PEFT only warns about a name that fits nothing, and the adapter then has no effect: every name is checked against the
base's modules here, as PEFT would match it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from rompatch.errors import OutputError
from rompatch.export.lowrank import SiteDelta, largest_rank
from rompatch.export.output import new_folder
from rompatch.export.provenance import ExportReport, Origin, WrittenSite

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "rompatch_export.json"
_FILES = frozenset({CONFIG, WEIGHTS, RECORD})
_PREFIX = "base_model.model."

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``--max-lora-rank``."""


def export_peft(
    deltas: Sequence[SiteDelta],
    origin: Origin,
    out: Path,
    *,
    modules: Iterable[str],
    base_name: str,
    base_folder: Path | None,
    dtype: str = "float32",
    force: bool = False,
) -> ExportReport:
    """Write the adapter folder *out*.

    Args:
        deltas: the sites' updates.
        origin: the base and the patches, for the record in the folder.
        modules: names of all modules of the live base.
        base_name: ``base_model_name_or_path`` of the adapter.
        base_folder: the base's checkpoint, in which nothing is written.
        dtype: of the adapter's tensors.
        force: replace an earlier export.

    Raises:
        OutputError: a site cannot be said in PEFT's names; *out* exists or cannot be written; *dtype* is too narrow.
    """
    check_names(deltas, modules)
    config = adapter_config(deltas, base_name)
    tensors, written = {}, []
    for delta in deltas:
        left, right = delta.rounded(dtype)
        tensors[f"{_PREFIX}{delta.module}.lora_A.weight"] = right
        tensors[f"{_PREFIX}{delta.module}.lora_B.weight"] = left
        error = delta.error(left, right)
        written.append(WrittenSite(delta.ref.parameter, delta.module, delta.update.rank, delta.rank, error))
    with new_folder(out, inside=base_folder, force=force, ours=is_our_adapter) as work:
        (work / CONFIG).write_text(_json(config), encoding="utf-8")
        (work / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
        (work / RECORD).write_text(_json(origin.record("peft", deltas)), encoding="utf-8")
        size = sum(path.stat().st_size for path in work.iterdir())
    return ExportReport("peft", out, size, dtype, tuple(written))


def adapter_config(deltas: Sequence[SiteDelta], base_name: str) -> dict[str, Any]:
    """``adapter_config.json``: alpha equals the rank everywhere, so that PEFT's scale alpha / r is 1 everywhere."""
    rank = largest_rank(deltas)
    # The patterns are regular expressions to PEFT, matched against the ends of names.
    others = {re.escape(delta.module): delta.rank for delta in deltas if delta.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": [delta.module for delta in deltas],
        "fan_in_fan_out": deltas[0].ref.transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def check_names(deltas: Sequence[SiteDelta], modules: Iterable[str]) -> None:
    """Whether PEFT would find exactly the modules meant.

    Raises:
        OutputError: a site is no module's ``weight``, a name fits no module or several, or orientations are mixed.
    """
    known = list(modules)
    for delta in deltas:
        # As PEFT does: a target fits the module of that name, and every module whose name ends with it.
        fitting = [name for name in known if name == delta.module or name.endswith(f".{delta.module}")]
        if not delta.ref.parameter.endswith(".weight") or fitting != [delta.module]:
            raise OutputError(
                f"A PEFT adapter cannot be made for {delta.ref.parameter}.",
                expected="one module of the base that goes by that name",
                found=", ".join(fitting[:4]) or "none",
                next_step="Bake the stack into a checkpoint instead: `rompatch bake OUT`.",
            )
    if len({delta.ref.transposed for delta in deltas}) > 1:
        raise OutputError(
            "A PEFT adapter has one orientation for all of its modules, and these patches are at both kinds.",
            next_step="Export them one kind at a time with --patch, or bake the stack: `rompatch bake OUT`.",
        )


def is_our_adapter(folder: Path) -> bool:
    """Whether *folder* holds an adapter that rompatch exported, and nothing else."""
    names = {path.name for path in folder.iterdir()}
    return RECORD in names and names <= _FILES


def vllm_rank(rank: int) -> int | None:
    """The least ``--max-lora-rank`` of vLLM that takes *rank*; None where none does."""
    return next((limit for limit in VLLM_RANKS if limit >= rank), None)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
