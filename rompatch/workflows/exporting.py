"""export: the stack in the forms that other programs load, each checked against the base before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import ConflictError, RequestError
from rompatch.store.records import PatchRecord
from rompatch.workflows.checking_exports import check_with, require_agreement
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.export.check import ExportCheck
    from rompatch.export.lowrank import SiteDelta
    from rompatch.export.provenance import ExportReport, Origin
    from rompatch.models import Base
    from rompatch.patch import Patch


@dataclass(frozen=True)
class ExportOptions:
    """How a stack is exported.

    Args:
        patches: names of patches to export instead of the active stack.
        spec, model: the base, where it is not the patches' own.
        dtype: of the numbers that are written.
        max_rank: keep at most so many columns a weight, the heaviest ones.
        base_name: what a PEFT adapter calls its base; by default as the store knows it.
        gguf: a GGUF file of the base, for llama.cpp to be checked with; by default the base itself, if it is one.
        check: run the client afterwards (:func:`check_export`).
        force: replace an earlier export at that place.
    """

    patches: Sequence[str] | None = None
    spec: BaseSpec | None = None
    model: str | None = None
    dtype: str = "float32"
    max_rank: int | None = None
    base_name: str | None = None
    gguf: str | Path | None = None
    check: bool = False
    force: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written, which patches are in it, and what came of the check; ``checked`` None: it was not asked for."""

    report: ExportReport
    patches: tuple[PatchRecord, ...]
    checked: ExportCheck | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        report = self.report
        return {
            "kind": report.kind,
            "path": str(report.path),
            "size": report.size,
            "dtype": report.dtype,
            "sites": [dict(vars(site)) for site in report.sites],
            "patches": [record.id for record in self.patches],
            "check": None if self.checked is None else self.checked.to_json(),
        }

    def check_gate(self) -> None:
        """Raises GateError if the client and the session do not agree."""
        if self.checked is not None:
            require_agreement(self.checked, self.report.path)


@dataclass(frozen=True)
class Prepared:
    """A stack on its live base, proven to belong to it, and its updates in low rank."""

    records: tuple[PatchRecord, ...]
    patches: tuple[Patch, ...]
    spec: BaseSpec
    base: Base
    deltas: tuple[SiteDelta, ...]
    origin: Origin


def export_peft(store: OpenStore, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write the stack (or the patches named) as a PEFT LoRA adapter, the new folder *out*.

    Raises:
        ConflictError: no patch is active, or what is exported changes nothing.
        RequestError: ``max_rank`` is not positive.
        OutputError: *out* exists, lies inside the base, cannot be written, or the form cannot say what the stack does.
        BaseMismatchError: the base is not the patches' own.
    """
    from rompatch.export.peft_lora import export_peft as write

    options = options or ExportOptions()
    prepared = prepare(store, options)
    report = write(
        prepared.deltas,
        prepared.origin,
        out,
        modules=[name for name, _ in prepared.base.model.named_modules()],
        base_name=options.base_name or prepared.spec.model,
        base_folder=prepared.base.folder,
        dtype=options.dtype,
        force=options.force,
    )
    return finished(store, prepared, report, options)


def export_delta(store: OpenStore, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write the stack (or the patches named) as plain low-rank factors, the new safetensors file *out*.

    Raises: as :func:`export_peft`.
    """
    from rompatch.export.delta import export_delta as write

    options = options or ExportOptions()
    prepared = prepare(store, options)
    folder = prepared.base.folder
    report = write(prepared.deltas, prepared.origin, out, base_folder=folder, dtype=options.dtype, force=options.force)
    return finished(store, prepared, report, options)


def export_gguf(store: OpenStore, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write the stack (or the patches named) as a LoRA adapter for llama.cpp, the new GGUF file *out*.

    Raises: as :func:`export_peft`; OutputError also where llama.cpp has no such architecture.
    """
    from rompatch.export.gguf_lora import export_gguf_lora as write
    from rompatch.export.gguf_names import architecture_of

    options = options or ExportOptions()
    prepared = prepare(store, options)
    report = write(
        prepared.deltas,
        prepared.origin,
        out,
        architecture=architecture_of(prepared.base.model_type),
        n_layers=prepared.base.n_layers,
        base_folder=prepared.base.folder,
        dtype=options.dtype,
        force=options.force,
    )
    return finished(store, prepared, report, options)


def prepare(store: OpenStore, options: ExportOptions) -> Prepared:
    """Load the base, prove that the patches are its own, and solve. Reads only.

    Raises: as :func:`export_peft`, as far as writing has no part in it.
    """
    from rompatch.apply.session import PatchedModel
    from rompatch.apply.solve import solve_stack
    from rompatch.export.lowrank import factorise
    from rompatch.export.provenance import Origin

    if options.max_rank is not None and options.max_rank < 1:
        raise RequestError(
            "An update has at least one column.", expected="--max-rank 1 or more", found=options.max_rank
        )
    records = store.chosen(options.patches)
    if not records:
        raise ConflictError("The stack is empty, so there is nothing to export.", next_step="Apply a patch first.")
    patches = tuple(store.blobs.get(record.id) for record in records)
    spec = options.spec or store.spec_for(records, options.model)
    base = store.base(spec)
    with PatchedModel(base) as patched:
        patched.activate(patches)  # proves every tensor's hash and the tokenizer's before anything else
    updates = solve_stack(patches)
    deltas = factorise(updates, [site for patch in patches for site in patch.header.sites], options.max_rank)
    origin = Origin(patches[0].header.base, tuple(sorted(record.id for record in records)))
    return Prepared(records, patches, spec, base, deltas, origin)


def finished(store: OpenStore, prepared: Prepared, report: ExportReport, options: ExportOptions) -> Exported:
    """The result of an export, checked in its client if that was asked for."""
    exported = Exported(report, prepared.records)
    if not options.check:
        return exported
    return replace(exported, checked=check_with(store, prepared.patches, prepared.spec, report, options.gguf))
