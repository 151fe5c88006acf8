"""A stack as a delta file: plain safetensors of low-rank factors for a few lines of Python (docs/delta-format.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from rompatch.export.lowrank import SiteDelta
from rompatch.export.output import new_file
from rompatch.export.provenance import RECORD_KEY, ExportReport, Origin, WrittenSite


def export_delta(
    deltas: Sequence[SiteDelta],
    origin: Origin,
    out: Path,
    *,
    base_folder: Path | None,
    dtype: str = "float32",
    force: bool = False,
) -> ExportReport:
    """Write *out*: for each weight ``<parameter>.left`` (d_out, rank) and ``<parameter>.right`` (rank, d_in).

    Args: as :func:`rompatch.export.peft_lora.export_peft`.

    Raises:
        OutputError: *out* exists or cannot be written; *dtype* is too narrow.
    """
    tensors: dict[str, Tensor] = {}
    written = []
    for delta in deltas:
        left, right = delta.rounded(dtype)
        name = delta.ref.parameter
        tensors |= {f"{name}.left": left, f"{name}.right": right}
        written.append(WrittenSite(name, name, delta.update.rank, delta.rank, delta.error(left, right)))
    # One metadata key: safetensors writes several in random order, and equal deltas would not give equal bytes.
    data = save(tensors, metadata={RECORD_KEY: origin.spelled("delta", deltas)})
    with new_file(out, inside=base_folder, force=force) as work:
        work.write_bytes(data)
    return ExportReport("delta", out, len(data), dtype, tuple(written))
