"""audit: which patches are inside a checkpoint, which of the stack are missing, and what no patch explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rompatch.errors import ModelError, SiteError
from rompatch.workflows.audited import (
    CLAIMED,
    EXPLAINED,
    EXTRA,
    IN_PART,
    INSIDE,
    MISSING,
    RESHAPED,
    UNEXPLAINED,
    Audited,
    ManifestAudited,
    PatchFound,
    TensorFound,
    claimed_patches,
)
from rompatch.workflows.knowledge import Knowledge
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.apply.comparing import Pair
    from rompatch.apply.manifest import Claim
    from rompatch.apply.stored import StoredTensor


def audit(store: OpenStore, folder: Path, *, spec: BaseSpec | None = None) -> Audited:
    """Compare the checkpoint in *folder* with its base, tensor by tensor, and explain what differs. Reads only.

    Neither model is loaded; of each folder some rows of one tensor are in memory at a time.

    Args:
        spec: the base, where it is not that of the stack in force.

    Raises:
        ModelError: a folder is missing, damaged or incomplete, or the manifest cannot be read.
    """
    from rompatch.apply.checkpoint import stored_tensors
    from rompatch.apply.manifest import read_manifest
    from rompatch.locate import locate

    folder = _existing(folder)
    found, claim = stored_tensors(folder), read_manifest(folder)
    source, base_folder = locate(_base_of(store, spec, claim).model, store.reporter.note)
    base = stored_tensors(base_folder)
    ledger = Knowledge(store, base_folder, base, claim)
    store.reporter.note(f"comparing {folder.name} with {source}")
    names = _counterparts(base, found)
    results = [
        _compare(ledger, base_folder, base[name], folder, found.get(names.get(name, "")))
        for name in _counted(store, sorted(base))
    ]
    tensors = [result for result in results if isinstance(result, TensorFound)]
    new = sorted(found.keys() - set(names.values()))
    tensors += [TensorFound(name, EXTRA) for name in new if not _is_a_copy(folder, found, name)]
    return Audited(
        folder=folder,
        base=source,
        patches=tuple(_patches(ledger, tensors, claim)),
        tensors=tuple(tensors),
        equal=results.count("equal"),
        rounded=results.count("rounded"),
        unchecked=0,
        candidates=len(ledger.candidates),
        has_manifest=claim is not None,
    )


def _counted(store: OpenStore, names: Sequence[str]) -> Iterator[str]:
    """*names*, each told to the store's reporter as it is begun."""
    for number, name in enumerate(names):
        store.reporter.step("comparing", number, len(names))
        yield name
    store.reporter.step("comparing", len(names), len(names))


def audit_manifest(folder: Path) -> ManifestAudited:
    """Compare the checkpoint in *folder* with the hashes in its own manifest; needs no base, no store and no patch.

    Raises:
        ModelError: there is no manifest, or it or the checkpoint cannot be read.
    """
    from rompatch.apply.checkpoint import stored_tensors
    from rompatch.apply.manifest import read_manifest

    folder = _existing(folder)
    found, claim = stored_tensors(folder), read_manifest(folder)
    if claim is None:
        raise ModelError(
            f"There is no manifest in {folder}.",
            expected="rompatch_manifest.json, which `rompatch bake` writes",
            next_step="Leave --manifest out: `rompatch audit` compares the checkpoint with its base then.",
        )
    expected = {**claim.base_tensors, **{name: after for name, (_, after) in claim.tensors.items()}}
    tensors, equal = [], 0
    for name, sha256 in sorted(expected.items()):
        same = name in found and found[name].sha256(folder) == sha256
        if name not in claim.tensors and same:
            equal += 1
        else:
            inside = claim.patches if name in claim.tensors else ()
            status = CLAIMED if same else UNEXPLAINED if name in found else MISSING
            tensors.append(TensorFound(name, status, inside if same else ()))
    return ManifestAudited(
        folder=folder,
        base=claim.base,
        patches=claimed_patches(claim.subjects),
        tensors=tuple(tensors),
        equal=equal,
        rounded=0,
        unchecked=len(found.keys() - expected.keys()),
        candidates=0,
        has_manifest=True,
    )


def _compare(
    ledger: Knowledge, base_folder: Path, base: StoredTensor, folder: Path, found: StoredTensor | None
) -> TensorFound | str | None:
    """What became of one tensor of the base: "equal", "rounded", a finding, or None where nothing is to be said."""
    from rompatch.apply.comparing import CHANGED, Pair, difference

    if found is None:
        copied = _is_a_copy(base_folder, ledger.base, base.name)
        return None if copied else TensorFound(base.name, MISSING)
    if found.shape != base.shape:
        return TensorFound(found.name, RESHAPED)
    pair = Pair(base_folder, base, folder, found)
    result = difference(pair)
    if result.kind != CHANGED:
        return result.kind
    if pair.is_float and base.name in ledger.sites:
        return _explained(ledger, pair, result.relative)
    claimed = _as_claimed(ledger.claim, pair)
    return TensorFound(found.name, CLAIMED if claimed else UNEXPLAINED, relative=result.relative)


def _explained(ledger: Knowledge, pair: Pair, relative: float | None) -> TensorFound:
    from rompatch.apply.explaining import explain

    site = ledger.sites[pair.base.name]
    ids = [record.id for record in site.records]
    factors = [
        next(
            part
            for ref, part in zip(record.header.sites, ledger.patch(record).factors, strict=True)
            if ref.parameter == site.ref.parameter
        )
        for record in site.records
    ]
    known = [(name, tuple(index for index, one in enumerate(ids) if one in members)) for name, members in ledger.known]
    found = explain(
        pair, factors, [(name, members) for name, members in known if members], transposed=site.ref.transposed
    )
    inside = tuple(ids[index] for index in found.members)
    if found.match is not None:
        return TensorFound(pair.found.name, EXPLAINED, inside, relative, found)
    if _as_claimed(ledger.claim, pair):
        return TensorFound(pair.found.name, CLAIMED, inside, relative, found)
    return TensorFound(pair.found.name, UNEXPLAINED, inside, relative, found)


def _as_claimed(claim: Claim | None, pair: Pair) -> bool:
    """Whether the manifest names this tensor with the hashes that it has."""
    hashes = None if claim is None else claim.tensors.get(pair.found.name)
    return hashes is not None and hashes == (pair.base.sha256(pair.base_folder), pair.found.sha256(pair.folder))


def _patches(ledger: Knowledge, tensors: Sequence[TensorFound], claim: Claim | None) -> Iterator[PatchFound]:
    """Ledger patches that are inside or active, then what the manifest claims besides."""
    inside: dict[str, int] = {}
    for tensor in tensors:
        for patch_id in tensor.patches:
            inside[patch_id] = inside.get(patch_id, 0) + 1
    known = {**ledger.candidates, **{record.id: record for record in ledger.store.active()}}
    for patch_id in sorted(known.keys() & (inside.keys() | ledger.active)):
        record, count = known[patch_id], inside.get(patch_id, 0)
        total = len(record.header.sites)
        status = INSIDE if count == total else IN_PART if count else MISSING
        yield PatchFound(patch_id, record.label, status, patch_id in ledger.active, total, count)
    if claim is not None:
        strangers = {patch_id: text for patch_id, text in claim.subjects.items() if patch_id not in ledger.candidates}
        yield from claimed_patches(strangers)


def _counterparts(base: Mapping[str, StoredTensor], found: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Name in the base to name in the checkpoint; a class may have added or dropped a prefix."""
    from rompatch.apply.checkpoint import match_name

    names = {}
    for name in base:
        try:
            names[name] = name if name in found else match_name(name, found.keys() - base.keys())
        except SiteError:
            continue
    return names


def _is_a_copy(folder: Path, tensors: Mapping[str, StoredTensor], name: str) -> bool:
    """Whether the same numbers are there under another name: a head that is tied to the embeddings."""
    one = tensors[name]
    twins = [
        other
        for other in tensors.values()
        if other.name != name and (other.dtype, other.shape) == (one.dtype, one.shape) and len(one.shape) > 1
    ]
    return any(
        all(left == right for left, right in zip(one.pieces(folder), other.pieces(folder), strict=True))
        for other in twins
    )


def _base_of(store: OpenStore, spec: BaseSpec | None, claim: Claim | None) -> BaseSpec:
    records = store.active() or store.patches(limit=1)
    if spec is not None or records or claim is None:
        return spec or store.spec_for(records)
    return BaseSpec(claim.base)


def _existing(folder: Path) -> Path:
    if folder.is_dir():
        return folder.resolve()
    raise ModelError(
        f"There is no checkpoint folder {folder}.",
        expected="a Hugging Face folder with the weights of an edited model",
        next_step="Check the path.",
    )
