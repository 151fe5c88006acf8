"""A bundle into a store: checked whole before anything is written, then files first and all rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.bundle import Bundle, BundledRun, Manifest, open_bundle
from rompatch.errors import BaseMismatchError, ConflictError
from rompatch.patch import SHORT_ID, PatchHeader
from rompatch.store.patches import base_id
from rompatch.store.plan import check_push
from rompatch.store.records import RevisionRecord, ScoreRecord, StackRecord
from rompatch.workflows.author import author
from rompatch.workflows.bundling import BundleReport, read_bundle
from rompatch.workflows.conflicts import contradictions, refused
from rompatch.workflows.opened import OpenStore
from rompatch.workflows.same_keys import contradicting_members


@dataclass(frozen=True)
class BundleImported:
    """What an import did.

    Args:
        report: the bundle.
        stack: the stack that its patches are on now.
        revision: the new revision; None where all of them were on it already, and nothing was changed.
        new_stack: whether the stack was made for it.
        new_patches: ids that the store did not have.
        runs: verification runs that were added.
    """

    report: BundleReport
    stack: str
    revision: RevisionRecord | None
    new_stack: bool
    new_patches: tuple[str, ...]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "file": str(self.report.file),
            "sha256": self.report.sha256,
            "signed": self.report.signed,
            "signer": self.report.signer,
            "stack": self.stack,
            "new_stack": self.new_stack,
            "revision": None if self.revision is None else self.revision.number,
            "patches": [patch.id for patch in self.report.manifest.patches],
            "new_patches": list(self.new_patches),
            "runs": self.runs,
        }


def import_bundle(
    store: OpenStore,
    path: Path,
    into: str | None = None,
    *,
    allowed_signers: Path | None = None,
    require_signature: bool = False,
) -> BundleImported:
    """Bring the patches in the bundle at *path* into the store, onto a new stack of the bundle's name or onto the stack
    *into* (made where there is none), as one revision. Its history is kept in that revision's details. Writes, all of
    it or nothing; a bundle whose patches are all on the stack already changes nothing.

    Args:
        into: a stack's name.
        allowed_signers, require_signature: as for :func:`~rompatch.workflows.bundling.read_bundle`.

    Raises:
        BundleError: it is damaged or hostile, or not signed as demanded.
        ConflictError: a stack of the bundle's name exists and *into* was not said; a patch contradicts an active one.
        BaseMismatchError: the stack, or what the store knows of the base's weights, is of another base.
        OutputError: a file cannot be written; then nothing is.
    """
    report = read_bundle(path, allowed_signers=allowed_signers, require_signature=require_signature)
    name = report.manifest.stack if into is None else into
    with open_bundle(path) as bundle, store.ledger.transaction():
        if bundle.sha256 != report.sha256:
            raise ConflictError(f"The file {path} was changed meanwhile.", next_step="Try again.")
        stack = next((one for one in store.ledger.stacks() if one.name == name), None)
        ids = _not_yet_on(store, stack, report.manifest)
        if not ids:
            return BundleImported(report, name, None, False, (), 0)
        if stack is not None and into is None:
            raise _taken(name)
        with _files_undone(store) as written:
            new = tuple(_add(store, bundle, written))
            runs = sum(_add_run(store, run) for run in bundle.runs)
            base = base_id(report.manifest.base)
            _check_facts(store, stack, ids)
            target = stack or store.ledger.create_stack(name, base, author=author(), message=f"for {path.name}")
            revision = store.ledger.push(
                target,
                ids,
                action="import",
                message=f"imported from {path.name}",
                author=author(),
                details=_provenance(report),
            )
    return BundleImported(report, name, revision, stack is None, new, runs)


def _not_yet_on(store: OpenStore, stack: StackRecord | None, manifest: Manifest) -> list[str]:
    active = set() if stack is None else {member.id for member in store.ledger.members(stack)}
    return [patch.id for patch in manifest.patches if patch.id not in active]


def _check_facts(store: OpenStore, stack: StackRecord | None, ids: Sequence[str]) -> None:
    """Whether the facts of *ids* are about something else than those on *stack*, or say the same."""
    if stack is None:
        return
    new = [store.ledger.patch(patch_id) for patch_id in ids]
    if pairs := contradictions(new, store.ledger.rivals(stack, new)):
        raise refused(stack.name, pairs)
    check_push(stack, [], new)  # whose keys can be compared: a patch of another base is told so first
    if pairs := contradicting_members(store, store.ledger.member_ids(stack), new):
        raise refused(stack.name, pairs)


def _taken(name: str) -> ConflictError:
    return ConflictError(
        f"A stack {name!r} exists already, and it does not hold all patches of the bundle.",
        next_step=f"Name another stack with --into, or add them to this one: --into {name}.",
        stack=name,
    )


@contextmanager
def _files_undone(store: OpenStore) -> Iterator[list[str]]:
    """A list for the ids whose file is new; if anything goes wrong, those files go again."""
    written: list[str] = []
    try:
        yield written
    except BaseException:
        for patch_id in written:
            store.blobs.remove(patch_id)
        raise


def _add(store: OpenStore, bundle: Bundle, written: list[str]) -> Iterator[str]:
    """Files and rows of the patches that the store does not have, by id."""
    about = {patch.id: patch for patch in bundle.manifest.patches}
    hashes = dict(store.ledger.site_hashes(base_id(bundle.manifest.base)))
    for done, patch in enumerate(bundle.patches()):
        store.reporter.step("importing patches", done, len(about))
        _check_weights(patch.header, patch.short_id, hashes)
        path = store.blobs.path(patch.id)
        known = store.ledger.knows(patch.id)
        if known and path.exists():
            continue
        if not path.exists():
            written.append(patch.id)
        store.blobs.put(patch)
        listed = about[patch.id]
        store.ledger.add_patch(
            patch.header,
            patch_id=patch.id,
            file_size=path.stat().st_size,
            measurements=listed.measurements,
            author=listed.author,
            message=listed.message,
            source=listed.source,
            expires_at=listed.expires_at,
            created_at=listed.created_at,
        )
        if not known:
            yield patch.id


def _check_weights(header: PatchHeader, name: str, hashes: dict[str, str]) -> None:
    """Whether what the patch says of the base's weights is what the store (and the bundle so far) knows of them."""
    for site in header.sites:
        known = hashes.setdefault(site.parameter, site.sha256)
        if known != site.sha256:
            raise BaseMismatchError(
                f"Patch {name} of the bundle was computed for other weights of {site.parameter} than the patches of "
                "that base that are known here.",
                expected=f"sha256 {known[:SHORT_ID]}",
                found=f"sha256 {site.sha256[:SHORT_ID]}",
                next_step="Only one of them can fit the base: ask where the bundle comes from.",
                parameter=site.parameter,
            )


def _add_run(store: OpenStore, run: BundledRun) -> bool:
    """Record *run* with its own time, unless the store has it; whether it was added."""
    same = (run.suite, run.created_at)
    if any((one.suite, one.created_at) == same for one in store.ledger.verifications(run.patch_id)):
        return False
    store.ledger.record_verification(
        run.suite,
        source=run.source,
        scores=[ScoreRecord(*score) for score in run.scores],
        patch_id=run.patch_id,
        prompts=run.prompts,
        settings=run.settings,
        environment=run.environment,
        created_at=run.created_at,
    )
    return True


def _provenance(report: BundleReport) -> dict[str, Any]:
    """The bundle's history, for the details of the revision."""
    manifest = report.manifest.to_json()
    kept: Sequence[str] = ("stack", "revision", "rompatch", "mentioned", "revisions")
    return {"bundle": {"sha256": report.sha256, "signer": report.signer, **{name: manifest[name] for name in kept}}}
