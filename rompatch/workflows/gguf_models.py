"""export gguf-model: the base's own GGUF file with the stack in it, where the base is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.errors import BaseMismatchError, OutputError
from rompatch.workflows.checking_exports import base_gguf
from rompatch.workflows.exporting import Exported, ExportOptions, Prepared, finished, prepare
from rompatch.workflows.opened import OpenStore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


def export_gguf_model(store: OpenStore, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write the base's GGUF file with the stack (or the patches named) in it, the new file *out*.

    The edited tensors are kept in ``options.dtype``: "float16", "q8_0" or "float32". Every other byte of data and
    metadata is the base's own.

    Raises:
        OutputError: the base is no GGUF file, or one that llama.cpp's tables do not fit; *out* exists or cannot be
            written.
        ConflictError, BaseMismatchError: as :func:`rompatch.workflows.exporting.export_peft`; BaseMismatchError also
            where the file's tensor is not the one that the patches were computed for.
    """
    import numpy as np

    from rompatch.export import gguf_model
    from rompatch.export.gguf_names import architecture_of, check_architecture, tensor_names
    from rompatch.export.provenance import ExportReport, WrittenSite

    options = options or ExportOptions(dtype="float16")
    gguf_model.check_dtype(options.dtype)
    prepared = prepare(store, options)
    source = _source(store, prepared)
    architecture, reader = architecture_of(prepared.base.model_type), gguf_model.open_gguf(source)
    check_architecture(gguf_model.architecture_in(reader), architecture, source)
    names = tensor_names(prepared.deltas, architecture, prepared.base.n_layers)
    data, written = {}, []
    for delta, (before, after) in zip(prepared.deltas, _matrices(prepared), strict=True):
        name, matrix = names[delta.ref.parameter], after.float().numpy()
        _check_same(gguf_model.matrix_in(reader, name, source), before, name, source)
        data[name] = gguf_model.encoded(matrix, options.dtype)
        lost = gguf_model.decoded(data[name], matrix.shape, options.dtype) - matrix
        error = float(np.linalg.norm(lost)) / delta.norm
        written.append(WrittenSite(delta.ref.parameter, name, delta.update.rank, delta.rank, error))
    size = gguf_model.write_gguf_model(source, out, data, options.dtype, base_folder=prepared.base.folder)
    report = ExportReport("gguf-model", out, size, options.dtype, tuple(written))
    return finished(store, prepared, report, options)


def _source(store: OpenStore, prepared: Prepared) -> Path:
    source = base_gguf(store, prepared.spec)
    if source is None:
        raise OutputError(
            f"The base {prepared.base.source} is no GGUF file, so there is none to put the stack into.",
            expected="a base that is a .gguf file",
            next_step="Export an adapter (`rompatch export gguf OUT`), or bake a checkpoint (`rompatch bake OUT`) and "
            "convert it with llama.cpp's convert_hf_to_gguf.py.",
        )
    return source


def _matrices(prepared: Prepared) -> list[tuple[Tensor, Tensor]]:
    """W of every site without the stack and with it, as the session has them, (d_out, d_in)."""
    from rompatch.apply.session import PatchedModel
    from rompatch.sites import site_of_parameter

    sites = [site_of_parameter(prepared.base.model, delta.ref) for delta in prepared.deltas]
    before = [site.matrix().clone() for site in sites]
    with PatchedModel(prepared.base) as patched:
        patched.activate(prepared.patches)
        after = [site.matrix().clone() for site in sites]
    return list(zip(before, after, strict=True))


def _check_same(found: npt.NDArray[np.float32], base: Tensor, name: str, source: Path) -> None:
    """Raises BaseMismatchError unless the file's tensor is, unpacked and in the base's dtype, the base's own."""
    import torch

    if not torch.equal(torch.from_numpy(found).to(base.dtype), base):
        raise BaseMismatchError(
            f"The tensor {name} in {source} is not the one that the patches were computed for.",
            expected="the numbers of the base that was loaded from it",
            found="others",
            next_step="Compute the patches anew on this file.",
        )
