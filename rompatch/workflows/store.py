"""The store as Python callers have it: every use case a method. ``rompatch.open_store()`` makes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rompatch.errors import StoreError
from rompatch.reporting import Reporter
from rompatch.store.bench import BenchResultRecord, BenchRunRecord
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.location import FOLDER, create_store, find_store, ledger_path, patches_path
from rompatch.store.records import PatchRecord, RevisionRecord, TagRecord
from rompatch.workflows.opened import BaseSpec, OpenStore

if TYPE_CHECKING:
    from rompatch.bench.failures import FailedRecord
    from rompatch.bench.tables import Change, Line
    from rompatch.bench.tasks import Benchmark
    from rompatch.compute.statistics_files import StatisticsFile
    from rompatch.workflows.applying import AppliedVerified
    from rompatch.workflows.audited import Audited
    from rompatch.workflows.baking import Baked
    from rompatch.workflows.bases import BaseChange
    from rompatch.workflows.benchmarking import Benched
    from rompatch.workflows.blaming import Blame
    from rompatch.workflows.browsing import Chain, Details, Page, Status
    from rompatch.workflows.bundle_import import BundleImported
    from rompatch.workflows.bundling import BundleReport
    from rompatch.workflows.checking import Checked
    from rompatch.workflows.checking_exports import CheckedExport
    from rompatch.workflows.creating import Created
    from rompatch.workflows.exporting import Exported
    from rompatch.workflows.forecasting import StackPlan
    from rompatch.workflows.generating import Generated
    from rompatch.workflows.importing import Imported
    from rompatch.workflows.many_outcomes import ManyCreated
    from rompatch.workflows.merging import MergePlan
    from rompatch.workflows.rebased import Rebased
    from rompatch.workflows.stack_report import StackVerified
    from rompatch.workflows.tuned import Tuned
    from rompatch.workflows.verifying import Verified
    from rompatch.workflows.versions import RevisionPage, StackDiff, StackInfo

__all__ = ["BaseSpec", "Store", "open_store"]


class Store(OpenStore):
    """An open store. Use it as a context manager."""

    def apply(self, *names: str, **options: Any) -> RevisionRecord:
        """Put patches onto the stack; options and errors as of :func:`rompatch.workflows.stacking.apply`."""
        from rompatch.workflows import stacking

        return stacking.apply(self, names, **options)

    def apply_verified(self, *names: str, **options: Any) -> AppliedVerified:
        """Score the stack that would be, and apply only if it keeps what it has to; options and errors as of
        :func:`rompatch.workflows.applying.apply_verified`."""
        from rompatch.workflows import applying

        return applying.apply_verified(self, names, **options)

    def plan(self, *names: str, supersede: bool = False, threshold: float | None = None) -> StackPlan:
        """What applying those patches would do, told before anything changes; of the stack as it is without names.
        See :func:`rompatch.workflows.forecasting.plan`."""
        from rompatch.workflows import forecasting

        return forecasting.plan(self, names, supersede=supersede, threshold=threshold)

    def gates(self) -> dict[str, float]:
        """The gates that every apply has to pass, by name; fractions. Reads only."""
        from rompatch.workflows import stack_gates

        return stack_gates.configured(self)

    def set_gates(self, **limits: float) -> dict[str, float]:
        """Set some of them; see :func:`rompatch.workflows.stack_gates.set_gates`."""
        from rompatch.workflows import stack_gates

        return stack_gates.set_gates(self, limits)

    def unset_gates(self, *names: str) -> dict[str, float]:
        """Remove some of them; see :func:`rompatch.workflows.stack_gates.unset_gates`."""
        from rompatch.workflows import stack_gates

        return stack_gates.unset_gates(self, names)

    def revert(self, *names: str, message: str | None = None, reason: str | None = None) -> RevisionRecord:
        """Take patches off the stack, all of them when none is named; see ``stacking.revert``."""
        from rompatch.workflows import stacking

        return stacking.revert(self, names, message=message, reason=reason)

    def new_stack(self, name: str, **options: Any) -> StackInfo:
        """A new stack; options as of :func:`rompatch.workflows.versions.new_stack`."""
        from rompatch.workflows import versions

        return versions.new_stack(self, name, **options)

    def stacks(self) -> tuple[StackInfo, ...]:
        """Every stack, by name. Reads only."""
        from rompatch.workflows import versions

        return versions.stack_infos(self)

    def stack_info(self, name: str | None = None) -> StackInfo:
        """One stack with its tags, the active one if none is named. Reads only."""
        from rompatch.workflows import versions

        return versions.stack_info(self, name)

    def revision(self, name: str | None = None) -> tuple[RevisionRecord, tuple[PatchRecord, ...]]:
        """One revision and the patches in it; see :func:`rompatch.workflows.versions.revision`."""
        from rompatch.workflows import versions

        return versions.revision(self, name)

    def use_stack(self, name: str) -> StackInfo:
        """Make a stack the active one; see :func:`rompatch.workflows.versions.use_stack`."""
        from rompatch.workflows import versions

        return versions.use_stack(self, name)

    def remove_stack(self, name: str, **options: Any) -> RevisionRecord:
        """Remove a stack; options as of :func:`rompatch.workflows.versions.remove_stack`."""
        from rompatch.workflows import versions

        return versions.remove_stack(self, name, **options)

    def stack_log(self, name: str | None = None, *, limit: int = 20, offset: int = 0) -> RevisionPage:
        """A stack's revisions, newest first; see :func:`rompatch.workflows.versions.stack_log`."""
        from rompatch.workflows import versions

        return versions.stack_log(self, name, limit=limit, offset=offset)

    def diff(self, before: str, after: str = "HEAD") -> StackDiff:
        """What changes from one revision to another; see :func:`rompatch.workflows.versions.diff`."""
        from rompatch.workflows import versions

        return versions.diff(self, before, after)

    def checkout(self, revision: str, **options: Any) -> RevisionRecord:
        """Go back to the patches of a revision; options as of :func:`rompatch.workflows.versions.checkout`."""
        from rompatch.workflows import versions

        return versions.checkout(self, revision, **options)

    def tag(self, name: str, revision: str = "HEAD", *, message: str | None = None) -> TagRecord:
        """Give a revision a name; see :func:`rompatch.workflows.versions.tag`."""
        from rompatch.workflows import versions

        return versions.tag(self, name, revision, message=message)

    def plan_merge(self, source: str, into: str | None = None) -> MergePlan:
        """What a merge would do; see :func:`rompatch.workflows.merging.plan_merge`."""
        from rompatch.workflows import merging

        return merging.plan_merge(self, source, into)

    def merge(self, source: str, into: str | None = None, **options: Any) -> RevisionRecord:
        """Merge a stack into another; options as of :func:`rompatch.workflows.merging.merge`."""
        from rompatch.workflows import merging

        return merging.merge(self, source, into, **options)

    def chain(self, name: str) -> Chain:
        """What happened to the facts about a subject; see :func:`rompatch.workflows.browsing.chain`."""
        from rompatch.workflows import browsing

        return browsing.chain(self, name)

    def remove(self, name: str) -> PatchRecord:
        """Delete a patch that is not active; see :func:`rompatch.workflows.stacking.remove`."""
        from rompatch.workflows import stacking

        return stacking.remove(self, name)

    def create(self, subject: str, relation: str, target: str, **options: Any) -> Created:
        """Compute a patch and record it; options as in :class:`rompatch.workflows.creating.CreateOptions`."""
        from rompatch.workflows import creating

        return creating.create(self, subject, relation, target, creating.CreateOptions(**options))

    def create_many(self, facts: str | Path | Iterable[Mapping[str, Any]], **options: Any) -> ManyCreated:
        """Compute a patch for every fact of a file, or of objects with its fields, resumable; options as in
        :class:`rompatch.workflows.many_running.CreateManyOptions`. See
        :func:`rompatch.workflows.creating_many.create_many`."""
        from rompatch.workflows import creating_many
        from rompatch.workflows.many_running import CreateManyOptions

        return creating_many.create_many(self, facts, CreateManyOptions(**options))

    def create_like(self, name: str, **options: Any) -> Created:
        """Compute the request of a patch again, on this base or another; options as for :meth:`create`. See
        :func:`rompatch.workflows.likeness.create_like`."""
        from rompatch.workflows import creating, likeness

        return likeness.create_like(self, name, creating.CreateOptions(**options))

    def rebase(self, onto: str, **options: Any) -> Rebased:
        """Recompute a stack for another base, on a stack of its own, resumable; options as in
        :class:`rompatch.workflows.rebased.RebaseOptions`. See :func:`rompatch.workflows.rebasing.rebase`."""
        from rompatch.workflows import rebasing
        from rompatch.workflows.rebased import RebaseOptions

        return rebasing.rebase(self, onto, RebaseOptions(**options))

    def verify(self, name: str, **options: Any) -> Verified:
        """Score a patch before and after; options as in :class:`rompatch.workflows.verifying.VerifyOptions`."""
        from rompatch.workflows import verifying

        return verifying.verify(self, name, verifying.VerifyOptions(**options))

    def verify_stack(self, **options: Any) -> StackVerified:
        """Score every patch of the stack in force on the finished model, against what it scored alone, and drift;
        options as in :class:`rompatch.workflows.stack_scoring.StackVerifyOptions`."""
        from rompatch.workflows import stack_scoring, verifying_stacks

        return verifying_stacks.verify_stack(self, stack_scoring.StackVerifyOptions(**options))

    def blame(self, prompt: str, **options: Any) -> Blame:
        """Which patches of the stack in force change an answer; options as in
        :class:`rompatch.workflows.blaming.BlameOptions`."""
        from rompatch.workflows import blaming

        return blaming.blame(self, prompt, blaming.BlameOptions(**options))

    def generate(self, *prompts: str, **options: Any) -> tuple[Generated, ...]:
        """Continue prompts; options as in :class:`rompatch.workflows.generating.GenerateOptions`."""
        from rompatch.workflows import generating

        return generating.generate(self, prompts, generating.GenerateOptions(**options))

    def bake(self, out: str | Path, *names: str, **options: Any) -> Baked:
        """Write base + stack (or the patches named) as a new checkpoint folder; options as in
        :func:`rompatch.workflows.baking.bake`."""
        from rompatch.workflows import baking

        return baking.bake(self, Path(out), names=names or None, **options)

    def audit(self, folder: str | Path, *, spec: BaseSpec | None = None) -> Audited:
        """Say which patches are inside a checkpoint, and what else; see :func:`rompatch.workflows.auditing.audit`."""
        from rompatch.workflows import auditing

        return auditing.audit(self, Path(folder), spec=spec)

    def export_peft(self, out: str | Path, **options: Any) -> Exported:
        """Write the stack as a PEFT LoRA adapter; options as in :class:`rompatch.workflows.exporting.ExportOptions`."""
        from rompatch.workflows import exporting

        return exporting.export_peft(self, Path(out), exporting.ExportOptions(**options))

    def export_gguf(self, out: str | Path, **options: Any) -> Exported:
        """Write the stack as a LoRA adapter for llama.cpp; options as in ``ExportOptions``."""
        from rompatch.workflows import exporting

        return exporting.export_gguf(self, Path(out), exporting.ExportOptions(**options))

    def export_gguf_model(self, out: str | Path, *, dtype: str = "float16", **options: Any) -> Exported:
        """Write the base's GGUF file with the stack in it; see ``gguf_models.export_gguf_model``."""
        from rompatch.workflows import exporting, gguf_models

        return gguf_models.export_gguf_model(self, Path(out), exporting.ExportOptions(dtype=dtype, **options))

    def check_export(
        self, path: str | Path, *, model: str | None = None, gguf: str | Path | None = None
    ) -> CheckedExport:
        """Run an export in its own client and compare with the session; see ``checking_exports.check_export``."""
        from rompatch.workflows import checking_exports

        return checking_exports.check_export(self, Path(path), model=model, gguf=gguf)

    def export_delta(self, out: str | Path, **options: Any) -> Exported:
        """Write the stack as plain low-rank factors; options as in ``ExportOptions``."""
        from rompatch.workflows import exporting

        return exporting.export_delta(self, Path(out), exporting.ExportOptions(**options))

    def import_peft(self, folder: str | Path, **options: Any) -> Imported:
        """Bring a LoRA adapter in as a patch; see :func:`rompatch.workflows.importing.import_peft`."""
        from rompatch.workflows import importing

        return importing.import_peft(self, Path(folder), **options)

    def export_bundle(
        self, out: str | Path, stack: str | None = None, *, sign: str | Path | None = None
    ) -> BundleReport:
        """Write a stack as one file; see :func:`rompatch.workflows.bundling.export_bundle`."""
        from rompatch.workflows import bundling

        return bundling.export_bundle(self, Path(out), stack, sign=None if sign is None else Path(sign))

    def import_bundle(
        self,
        path: str | Path,
        into: str | None = None,
        *,
        allowed_signers: str | Path | None = None,
        require_signature: bool = False,
    ) -> BundleImported:
        """Bring the patches of a bundle in; see :func:`rompatch.workflows.bundle_import.import_bundle`."""
        from rompatch.workflows import bundle_import

        signers = None if allowed_signers is None else Path(allowed_signers)
        return bundle_import.import_bundle(
            self, Path(path), into, allowed_signers=signers, require_signature=require_signature
        )

    def use(self, model: str, dtype: str | None = None, module: str | None = None) -> BaseChange:
        """Choose the base of future patches; see :func:`rompatch.workflows.bases.use_base`."""
        from rompatch.workflows import bases

        return bases.use_base(self, model, dtype, module)

    def details(self, name: str) -> Details:
        """Everything about one patch; see :func:`rompatch.workflows.browsing.details`."""
        from rompatch.workflows import browsing

        return browsing.details(self, name)

    def history(self, *, limit: int = 20, offset: int = 0) -> Page:
        """What happened, newest first; see :func:`rompatch.workflows.browsing.history`."""
        from rompatch.workflows import browsing

        return browsing.history(self, limit=limit, offset=offset)

    def status(self) -> Status:
        """Store, base, stack and active patches; see :func:`rompatch.workflows.browsing.status`."""
        from rompatch.workflows import browsing

        return browsing.status(self)

    def statistics(self) -> list[StatisticsFile]:
        """The key statistics at hand, those that come with rompatch first; they are the user's, not the store's."""
        from rompatch.workflows.statistics import statistics_cache

        return list(statistics_cache().files())

    def show_statistics(self, statistics_id: str) -> StatisticsFile:
        """Where the statistics whose id begins with *statistics_id* come from.

        Raises:
            StatisticsError, AmbiguousIdError: none are of that id, or several.
        """
        from rompatch.workflows.statistics import statistics_cache

        return statistics_cache().resolve(statistics_id)

    def build_statistics(
        self,
        corpus: str | None = None,
        *,
        layer: int | None = None,
        tokens: int | None = None,
        seed: int = 0,
        spec: BaseSpec | None = None,
        device: str = "cpu",
    ) -> StatisticsFile:
        """Collect statistics and save them; see :func:`rompatch.workflows.collecting.build_statistics`."""
        from rompatch.workflows import collecting

        return collecting.build_statistics(
            self, corpus, spec=spec, device=device, layer=layer, tokens=tokens, seed=seed
        )

    def build_statistics_at(
        self,
        layers: Iterable[int],
        corpus: str | None = None,
        *,
        tokens: int | None = None,
        seed: int = 0,
        spec: BaseSpec | None = None,
        device: str = "cpu",
    ) -> list[StatisticsFile]:
        """The same at several layers in one pass; see :func:`rompatch.workflows.collecting.build_statistics_at`."""
        from rompatch.workflows import collecting

        return collecting.build_statistics_at(self, layers, corpus, spec=spec, device=device, tokens=tokens, seed=seed)

    def remove_statistics(self, statistics_id: str) -> StatisticsFile:
        """Delete the cached statistics whose id begins with *statistics_id*. Patches made with them stay as they are.

        Raises:
            StatisticsError, AmbiguousIdError: none are of that id, or several; or they come with rompatch.
            OutputError: the file cannot be deleted.
        """
        from rompatch.workflows.statistics import statistics_cache

        cache = statistics_cache()
        file = cache.resolve(statistics_id)
        cache.remove(file)
        return file

    def bench(self, benchmark: Benchmark, dataset: str | Path, **options: Any) -> Benched:
        """Edit and score every record of a data set ("counterfact" or "zsre"), each alone, resumable; options as in
        :class:`rompatch.workflows.bench_setting.BenchOptions`. See :func:`rompatch.workflows.benchmarking.bench`."""
        from rompatch.workflows import benchmarking
        from rompatch.workflows.bench_setting import BenchOptions

        return benchmarking.bench(self, benchmark, dataset, BenchOptions(**options))

    def tune(self, dataset: str | Path, layers: Iterable[int], **options: Any) -> Tuned:
        """Find the best of some layers and hyper-parameters on COUNTERFACT records, by successive halving, resumable;
        options as in :class:`rompatch.workflows.tuned.TuneOptions`. See :func:`rompatch.workflows.tuning.tune`."""
        from rompatch.workflows import tuning
        from rompatch.workflows.tuned import TuneOptions

        return tuning.tune(self, dataset, TuneOptions(layers=layers, **options))

    def bench_runs(self) -> tuple[BenchRunRecord, ...]:
        """The benchmark runs, newest first. Reads only."""
        return self.ledger.bench_runs()

    def bench_results(self, run: str, *, prompts: bool = False) -> tuple[BenchResultRecord, ...]:
        """What became of each record of a run (a name, an id or a prefix of one), with every prompt if asked."""
        from rompatch.workflows import benchmarking

        return benchmarking.results(self, run, prompts=prompts)

    def bench_table(self, *runs: str) -> tuple[Line, ...]:
        """Means with intervals of those runs (all, where none is named) and of the unedited base. Reads only."""
        from rompatch.bench.tables import table
        from rompatch.workflows import benchmarking

        return table(benchmarking.with_results(self, runs))

    def bench_compare(self, first: str, second: str) -> tuple[Change, ...]:
        """Paired differences, *second* - *first*, over the records that both runs scored. Reads only."""
        from rompatch.bench.tables import compare

        return compare(self.bench_results(first), self.bench_results(second))

    def bench_worst(self, run: str) -> tuple[FailedRecord, ...]:
        """The records of a run that failed or have failing prompts, worst first. Reads only."""
        from rompatch.bench.failures import worst

        return worst(self.bench_results(run, prompts=True))

    def remove_bench(self, run: str) -> BenchRunRecord:
        """Forget a run and its results; see :func:`rompatch.workflows.benchmarking.remove`."""
        from rompatch.workflows import benchmarking

        return benchmarking.remove(self, run)

    def check(self, *, mend: bool = False) -> Checked:
        """Whether ledger and files are whole and agree; see :func:`rompatch.workflows.checking.check`."""
        from rompatch.workflows import checking

        return checking.check(self, mend=mend)


def open_store(
    path: str | Path | None = None, *, create: bool = True, reporter: Reporter | None = None, start: Path | None = None
) -> Store:
    """Open the store at *path*, else at ``ROMPATCH_STORE``, else the nearest ``.rompatch`` at or above the working
    directory. Writes only when it is created here (with a note) or its schema is older than this rompatch.

    Args:
        path: the store's folder; a folder that holds a ``.rompatch`` stands for that.
        create: make the store where there is none.

    Raises:
        StoreError: there is none and *create* is false, or it cannot be opened.
        SchemaError: it was written by a newer rompatch.
    """
    reporter = reporter or Reporter()
    here = start or Path.cwd()
    root = store_root(path, here)
    if root is None:
        if not create:
            raise StoreError(
                f"There is no store at {here} or above it.",
                expected=f"a folder {FOLDER}",
                next_step="`rompatch create` makes one, or name one with --store.",
            )
        root = here / FOLDER
    new = not ledger_path(root).exists()
    if new and create:
        create_store(root)
    ledger = Ledger.open(ledger_path(root), create=create)
    if new:
        reporter.note(f"created the store {root}")
    return Store(root, ledger, Blobs(patches_path(root)), reporter)


def store_root(path: str | Path | None, start: Path) -> Path | None:
    """The folder of the store that *path*, the environment or the folders from *start* upward mean; None: nothing
    was named and nothing found. Whether there is a ledger in it is another question. Reads only."""
    return find_store(_inside(Path(path)) if path is not None else None, start)


def _inside(path: Path) -> Path:
    path = path.expanduser()
    return path / FOLDER if path.name != FOLDER and (path / FOLDER).is_dir() else path
