"""A stack into one file: its patches, its history and what its patches scored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch import __version__, patchfile
from rompatch.bundle import (
    BundledPatch,
    BundledRevision,
    BundledRun,
    Manifest,
    entry_refs,
    open_bundle,
    runs_entry,
    signing,
    to_bytes,
)
from rompatch.bundle.limits import patch_entry
from rompatch.bundle.reading import sha256
from rompatch.errors import BundleError, ConflictError, OutputError, RequestError
from rompatch.folders import sweep
from rompatch.store.records import PatchRecord, RevisionRecord, StackRecord, VerificationRecord
from rompatch.workflows.opened import OpenStore


@dataclass(frozen=True)
class BundleReport:
    """A bundle, as it was written or read.

    Args:
        file: where it is.
        size: its bytes.
        sha256: of its manifest; equal stacks with equal history have one.
        manifest: what it says about itself.
        runs: verification runs in it.
        signed: whether it carries a signature.
        signer: whose it is, where that was checked.
    """

    file: Path
    size: int
    sha256: str
    manifest: Manifest
    runs: int
    signed: bool
    signer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        shown = {name: str(value) if name == "file" else value for name, value in vars(self).items()}
        return shown | {"manifest": self.manifest.to_json()}


def export_bundle(store: OpenStore, out: Path, stack: str | None = None, *, sign: Path | None = None) -> BundleReport:
    """Write the stack of that name (the active one) to the new file *out*: its members' patch files, its whole history,
    and every verification run of a member. Patches that left the stack are named in the history, not included.

    Args:
        sign: a private ssh key to sign it with.

    Raises:
        ConflictError: there is no stack, or it is empty.
        OutputError: *out* exists, or cannot be written.
        PatchNotFoundError: no such stack.
        StoreError, PatchFileError: the file of a member is missing or damaged.
        BundleError: it would break a limit, or the key did not sign.
    """
    if os.path.lexists(out):
        raise OutputError(f"{out} exists already.", next_step="Name another file, or remove it first.")
    record, members = _stack_of(store, stack)
    contents = {}
    for done, member in enumerate(members):
        store.reporter.step("reading patches", done, len(members))
        contents[patch_entry(member.id)] = patchfile.to_bytes(store.blobs.get(member.id))
    runs = [_bundled_run(run) for member in members for run in store.ledger.verifications(member.id)[::-1]]
    contents |= runs_entry(runs)
    revisions = [one for one in store.ledger.revisions(record)[::-1] if one.number <= record.revision]
    manifest = Manifest(
        stack=record.name,
        revision=record.revision,
        base=members[0].header.base,
        patches=tuple(_bundled_patch(member) for member in members),
        mentioned=_mentioned(store, record, members, revisions),
        revisions=tuple(_bundled_revision(revision) for revision in revisions),
        entries=entry_refs(contents),
        rompatch=__version__,
    )
    signature = None if sign is None else signing.sign(manifest.to_bytes(), sign.expanduser())
    data = to_bytes(manifest, contents, signature)
    sweep(out)
    patchfile.atomic_write(out, data)
    return BundleReport(out, len(data), sha256(manifest.to_bytes()), manifest, len(runs), signature is not None)


def read_bundle(path: Path, *, allowed_signers: Path | None = None, require_signature: bool = False) -> BundleReport:
    """What the bundle at *path* holds; every byte and every patch is checked. Reads only.

    Args:
        allowed_signers: where it is signed, by whom it may be: an allowed_signers file as ssh has it.
        require_signature: refuse an unsigned one.

    Raises:
        BundleError: it is damaged or hostile, or not signed as demanded.
        RequestError: a signature is demanded, but not whose.
    """
    if require_signature and allowed_signers is None:
        raise RequestError(
            "A signature is demanded, but not whose.", next_step="Name a file of allowed signers: --allowed-signers."
        )
    with open_bundle(path) as bundle:
        signer = None
        if bundle.signature is not None and allowed_signers is not None:
            signer = signing.verify(bundle.manifest_bytes, bundle.signature, allowed_signers.expanduser())
        if bundle.signature is None and require_signature:
            raise BundleError(
                f"The bundle {path} is not signed.", next_step="Ask for a signed one, or leave --require-signature out."
            )
        bundle.check()
        signed = bundle.signature is not None
        return BundleReport(path, path.stat().st_size, bundle.sha256, bundle.manifest, len(bundle.runs), signed, signer)


def _stack_of(store: OpenStore, name: str | None) -> tuple[StackRecord, tuple[PatchRecord, ...]]:
    stack = store.stack() if name is None else store.ledger.stack(name)
    members = () if stack is None else store.ledger.members(stack, stack.revision)
    if stack is None or not members:
        raise ConflictError("The stack is empty, so there is nothing to export.", next_step="Apply a patch first.")
    return stack, members


def _bundled_patch(record: PatchRecord) -> BundledPatch:
    names = ("id", "created_at", "author", "message", "source", "expires_at", "measurements")
    return BundledPatch(label=record.header.label, **{name: getattr(record, name) for name in names})


def _bundled_revision(record: RevisionRecord) -> BundledRevision:
    names = ("number", "parent", "action", "created_at", "author", "message", "reason", "members", "details")
    return BundledRevision(**{name: getattr(record, name) for name in names})


def _bundled_run(run: VerificationRecord) -> BundledRun:
    return BundledRun(
        patch_id=str(run.patch_id),
        suite=run.suite,
        source=run.suite_source,
        created_at=run.created_at,
        settings=run.settings,
        environment=run.environment,
        prompts=run.prompts,
        scores=tuple((score.phase, score.metric, score.value, score.n) for score in run.scores),
    )


def _mentioned(
    store: OpenStore, stack: StackRecord, members: Sequence[PatchRecord], revisions: Sequence[RevisionRecord]
) -> dict[str, str]:
    """Labels of the patches that were on the stack and are not now."""
    known = {member.id: member.header.label for member in members}
    now = set(known)
    for revision in revisions:
        if not known.keys() >= set(revision.added):
            known |= {one.id: one.header.label for one in store.ledger.members(stack, revision.number)}
    return {one: label for one, label in known.items() if one not in now}
