"""bake: base + stack as a checkpoint folder that plain transformers loads. The model itself is never loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch import __version__
from rompatch.errors import BaseMismatchError, ConflictError
from rompatch.patch import SHORT_ID, BaseRef, Patch
from rompatch.store.records import PatchRecord
from rompatch.versions import library_versions
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from torch import Tensor

    from rompatch.apply.bake import BakeReport

_METRICS = ("s", "es", "ps", "ns")


@dataclass(frozen=True)
class Baked:
    """What was written, and which patches are in it."""

    report: BakeReport
    patches: tuple[PatchRecord, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "folder": str(self.report.folder),
            "files": self.report.files,
            "size": self.report.size,
            "rewritten": [vars(tensor) for tensor in self.report.rewritten],
            "left_out": list(self.report.left_out),
            "patches": [record.id for record in self.patches],
        }


def bake(store: OpenStore, out: Path, *, names: Sequence[str] | None = None, spec: BaseSpec | None = None) -> Baked:
    """Write base + stack (or the patches that *names* mean) to the new folder *out*; bit for bit what a session has.

    Args:
        spec: the base, where it is not the patches' own.

    Raises:
        ConflictError: the stack is empty.
        OutputError: *out* exists, or cannot be written.
        BaseMismatchError: a tensor, its dtype or the tokenizer in the base's folder is not the one that a patch was
            computed for.
    """
    from rompatch.apply.bake import bake_folder
    from rompatch.apply.solve import JOINT_RIDGE
    from rompatch.models import locate

    named = () if names is None else (store.resolve(name) for name in names)
    records = store.active() if names is None else tuple({record.id: record for record in named}.values())
    if not records:
        raise ConflictError("The stack is empty, so there is nothing to bake.", next_step="Apply a patch first.")
    patches = [store.blobs.get(record.id) for record in records]
    source, folder = locate((spec or store.spec_for(records)).model, store.reporter.note)
    _check_tokenizer(folder, patches)
    _check_dtype(folder, patches)
    store.reporter.note(f"baking {_count(records)} into a copy of {source}")
    report = bake_folder(
        folder,
        out,
        edited_tensors(folder, patches),
        card=model_card(store, source, patches[0].header.base, records),
        manifest=manifest(source, patches, JOINT_RIDGE),
        expected_sha256={site.parameter: site.sha256 for patch in patches for site in patch.header.sites},
    )
    return Baked(report, tuple(records))


def edited_tensors(folder: Path, patches: Sequence[Patch]) -> dict[str, Tensor]:
    """Parameter name to the edited tensor, from the checkpoint in *folder*; only the touched tensors are read."""
    from safetensors import safe_open

    from rompatch.apply.checkpoint import match_name, stored_tensors
    from rompatch.apply.solve import materialise, solve_stack

    sites = {site.parameter: site for patch in patches for site in patch.header.sites}
    stored = stored_tensors(folder)
    edited = {}
    for parameter, update in solve_stack(patches).items():
        place = stored[match_name(parameter, stored)]
        with safe_open(folder / place.shard, framework="pt") as handle:
            tensor = handle.get_tensor(place.name)
        edited[parameter] = materialise(tensor, update, transposed=sites[parameter].transposed)
    return edited


def manifest(source: str, patches: Sequence[Patch], ridge: float) -> dict[str, Any]:
    """What makes a bake reproducible: base, patches in full (headers), tensor hashes, lambda, versions."""
    return {
        "rompatch_manifest": 1,
        "base": {"source": source, **vars(patches[0].header.base)},
        "joint_ridge": ridge,
        "patches": [{"id": patch.id, **patch.header.to_json()} for patch in sorted(patches, key=lambda p: p.id)],
        "base_tensors": {site.parameter: site.sha256 for patch in patches for site in patch.header.sites},
        "versions": library_versions(),
    }


def model_card(store: OpenStore, source: str, base: BaseRef, records: Sequence[PatchRecord]) -> str:
    """README.md of a baked checkpoint: which facts were changed, with their newest scores."""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [rompatch, model-editing]",
        "---",
        "",
        f"# {source}, edited",
        "",
        (
            f"This checkpoint is `{source}` ({base.model_type}, {base.dtype}) with {_count(records)}, "
            f"made by rompatch {__version__}. Every other tensor is the base's own, byte for byte."
        ),
        "",
        "| patch | prompt | true object | new object | S | ES | PS | NS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_card_row(store, record) for record in records]
    lines += ["", "`rompatch_manifest.json` holds the patches' headers and the hashes that make this reproducible.", ""]
    return "\n".join(lines)


def _count(records: Sequence[PatchRecord]) -> str:
    return f"{len(records)} patch{'es' if len(records) != 1 else ''}"


def _card_row(store: OpenStore, record: PatchRecord) -> str:
    runs = store.ledger.verifications(record.id, limit=1)
    scores = [runs[0].score(metric) if runs else None for metric in _METRICS]
    cells = [
        f"`{record.id[:SHORT_ID]}`",
        *record.fact_cells,
        *("not measured" if score is None else f"{100 * score:.1f}" for score in scores),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _check_tokenizer(folder: Path, patches: Sequence[Patch]) -> None:
    from transformers import AutoTokenizer

    from rompatch.fingerprints import tokenizer_hash

    found = tokenizer_hash(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    for patch in patches:
        expected = patch.header.base.tokenizer_hash
        if found != expected:
            raise BaseMismatchError(
                f"Patch {patch.short_id} was computed with another tokenizer than the one in {folder}.",
                expected=f"fingerprint {expected[:SHORT_ID]}",
                found=found[:SHORT_ID],
                next_step="Bake from the patch's own base.",
                patch_id=patch.id,
            )


def _check_dtype(folder: Path, patches: Sequence[Patch]) -> None:
    from rompatch.apply.checkpoint import match_name, stored_tensors

    stored = stored_tensors(folder)
    for patch in patches:
        for site in patch.header.sites:
            found = stored[match_name(site.parameter, stored)].dtype
            if found != site.dtype:
                raise BaseMismatchError(
                    f"Patch {patch.short_id} was computed in {site.dtype} (--dtype), the checkpoint in {folder} stores "
                    f"{found}.",
                    expected=f"{site.parameter} in {site.dtype}",
                    found=found,
                    next_step=f"Bake from a checkpoint that was saved in {site.dtype} (--model), or compute the patch "
                    "anew without --dtype.",
                    patch_id=patch.id,
                    parameter=site.parameter,
                )
