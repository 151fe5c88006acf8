"""A stack as a LoRA adapter in GGUF form, which llama.cpp and what is built on it load beside the base.

llama.cpp multiplies a tensor's B A by alpha / rank of that tensor, and alpha is one number for the whole file. Alpha is
the largest rank here, and B is multiplied by rank / alpha where a tensor's rank is smaller, so that the scale comes out
as 1 everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf

from rompatch.errors import OutputError
from rompatch.export.gguf_names import tensor_names
from rompatch.export.lowrank import SiteDelta, largest_rank
from rompatch.export.output import new_file
from rompatch.export.provenance import ExportReport, Origin, WrittenSite

RECORD_FIELD = "rompatch.export"
"""The metadata key with the export's record; llama.cpp passes over keys it does not know."""

DTYPES = ("float32", "float16")
"""What llama.cpp reads in an adapter on every backend."""


def export_gguf_lora(
    deltas: Sequence[SiteDelta],
    origin: Origin,
    out: Path,
    *,
    architecture: str,
    n_layers: int,
    base_folder: Path | None,
    dtype: str = "float32",
    force: bool = False,
) -> ExportReport:
    """Write the adapter file *out*.

    Args:
        architecture: llama.cpp's name for the base's (:func:`rompatch.export.gguf_names.architecture_of`).
        n_layers: of the base.
        deltas, origin, base_folder, dtype, force: as for :func:`rompatch.export.peft_lora.export_peft`.

    Raises:
        OutputError: llama.cpp has no such tensor or no such dtype; *out* exists or cannot be written.
    """
    if dtype not in DTYPES:
        raise OutputError(f"A GGUF adapter is not written in {dtype}.", expected=" or ".join(DTYPES), found=dtype)
    names = tensor_names(deltas, architecture, n_layers)
    alpha, written = largest_rank(deltas), []
    with new_file(out, inside=base_folder, force=force) as work:
        writer = gguf.GGUFWriter(work, architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
            writer.add_string(RECORD_FIELD, origin.spelled("gguf", deltas))
            for delta in deltas:
                name, scale = names[delta.ref.parameter], delta.rank / alpha
                left, right = delta.rounded(dtype, left_factor=scale)
                writer.add_tensor(f"{name}.lora_a", right.numpy())
                writer.add_tensor(f"{name}.lora_b", left.numpy())
                error = delta.error(left.double() / scale, right)
                written.append(WrittenSite(delta.ref.parameter, name, delta.update.rank, delta.rank, error))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        size = work.stat().st_size
    return ExportReport("gguf", out, size, dtype, tuple(written))
