"""bake: base + stack as a checkpoint folder that plain transformers loads. The model itself is never loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import BaseMismatchError, ConflictError
from rompatch.patch import SHORT_ID, Patch
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.apply.baked import BakeReport, Edit
    from rompatch.apply.rounding import Rounding


@dataclass(frozen=True)
class Baked:
    """What was written, and which patches are in it."""

    report: BakeReport
    patches: tuple[PatchRecord, ...]

    @property
    def swallowed(self) -> tuple[Rounding, ...]:
        """Patches of which the cast to the checkpoint's dtype left too little."""
        return tuple(one for tensor in self.report.rewritten for one in tensor.rounding if one.swallowed)

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        from rompatch.apply.manifest import rewritten_json

        report = self.report
        return {
            "folder": str(report.folder),
            "files": report.files,
            "size": report.size,
            "linked": report.linked,
            "verified": report.verified,
            "rewritten": [rewritten_json(tensor) for tensor in report.rewritten],
            "swallowed": [one.patch_id for one in self.swallowed],
            "left_out": list(report.left_out),
            "patches": [record.id for record in self.patches],
        }


def bake(
    store: OpenStore,
    out: Path,
    *,
    names: Sequence[str] | None = None,
    spec: BaseSpec | None = None,
    hard_link: bool = False,
    verify_all: bool = False,
) -> Baked:
    """Write base + stack (or the patches that *names* mean) to the new folder *out*; bit for bit what a session has.

    Args:
        spec: the base, where it is not the patches' own.
        hard_link, verify_all: as in :class:`rompatch.apply.baked.BakeOptions`.

    Raises:
        ConflictError: the stack is empty.
        OutputError: *out* exists, or cannot be written.
        BaseMismatchError: a tensor, its dtype or the tokenizer in the base's folder is not the one that a patch was
            computed for.
    """
    from rompatch.apply.bake import bake_folder
    from rompatch.apply.baked import CARD, MANIFEST, BakeOptions, Written
    from rompatch.apply.manifest import manifest_text
    from rompatch.apply.solve import JOINT_RIDGE
    from rompatch.locate import locate
    from rompatch.workflows.model_card import counted, model_card

    records = store.chosen(names)
    if not records:
        raise ConflictError("The stack is empty, so there is nothing to bake.", next_step="Apply a patch first.")
    patches = [store.blobs.get(record.id) for record in records]
    source, folder = locate((spec or store.spec_for(records)).model, store.reporter.note)
    _check_tokenizer(folder, patches)
    _check_dtype(folder, patches)

    def documents(written: Written) -> dict[str, str]:
        return {
            CARD: model_card(store, source, folder, patches[0].header.base, records, written),
            MANIFEST: manifest_text(source, patches, JOINT_RIDGE, written),
        }

    store.reporter.note(f"baking {counted(records)} into a copy of {source}")
    options = BakeOptions(hard_link=hard_link, verify_all=verify_all)
    report = bake_folder(folder, out, edits_of(patches), documents, options, store.reporter.step)
    baked = Baked(report, records)
    _warn(store, baked)
    return baked


def edits_of(patches: Sequence[Patch]) -> list[Edit]:
    """What the joint solution of *patches* does to each site, and the keys to judge it by."""
    from rompatch.apply.baked import Edit
    from rompatch.apply.rounding import Probe
    from rompatch.apply.solve import canonical, solve_stack

    sites = {site.parameter: site for patch in patches for site in patch.header.sites}
    probes: dict[str, list[Probe]] = {}
    for patch in canonical(patches):
        for site, factors in zip(patch.header.sites, patch.factors, strict=True):
            probes.setdefault(site.parameter, []).append(Probe.of(patch.id, factors))
    return [
        Edit(sites[parameter], update, tuple(probes[parameter])) for parameter, update in solve_stack(patches).items()
    ]


def _warn(store: OpenStore, baked: Baked) -> None:
    labels = {record.id: record.label for record in baked.patches}
    for tensor in baked.report.rewritten:
        for one in tensor.rounding:
            if one.swallowed:
                store.reporter.note(
                    f"rounding to {tensor.dtype} left {100 * one.kept:.0f} % of patch {labels[one.patch_id]} in "
                    f"{tensor.parameter}, with an error of {100 * one.error:.0f} %; bake from a float32 base to keep it"
                )


def _check_tokenizer(folder: Path, patches: Sequence[Patch]) -> None:
    from rompatch.tokenizer_hash import quick_hash

    wanted = {patch.header.base.tokenizer_hash for patch in patches}
    if wanted == {quick_hash(folder)}:  # the common case, without loading transformers
        return
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
