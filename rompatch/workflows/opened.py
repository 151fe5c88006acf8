"""A store, opened: the ledger, the patch files, and the base they belong to. Use cases take one of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rompatch.default_model import DEFAULT_MODEL
from rompatch.edits import same_text
from rompatch.reporting import Reporter
from rompatch.store.blobs import Blobs
from rompatch.store.ledger import Ledger
from rompatch.store.records import PatchRecord, StackRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rompatch.models import Base
    from rompatch.patch import Patch

Self = TypeVar("Self", bound="OpenStore")
MAIN_STACK = "main"
BASE_SETTING = "base"


@dataclass(frozen=True)
class BaseSpec:
    """How the store's base is loaded: what ``--model``, ``--dtype`` and ``--module`` said when it was chosen."""

    model: str = DEFAULT_MODEL
    dtype: str | None = None
    module: str | None = None


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """Which base, where it is not the patches' own: part of what many use cases may be told.

    Args:
        spec: the base; or by its parts, each None being what the patches' own has:
        model, dtype, module: as ``--model``, ``--dtype`` and ``--module``.
        device: where to put it, as for :meth:`OpenStore.base`.
    """

    spec: BaseSpec | None = None
    model: str | None = None
    dtype: str | None = None
    module: str | None = None
    device: str = "cpu"

    def spec_of(self, store: OpenStore, records: Sequence[PatchRecord]) -> BaseSpec:
        """How to load the base of *records*, unless another was told. Reads only."""
        return self.spec or store.spec_for(records, self.model, self.dtype, self.module)

    def base_of(self, store: OpenStore, records: Sequence[PatchRecord]) -> Base:
        """The base of *records*, unless another was told; loaded as by :meth:`OpenStore.base`.

        Raises:
            ModelError: it cannot be loaded.
        """
        return store.base(self.spec_of(store, records), device=self.device)


@dataclass
class OpenStore:
    """An open store: what every use case needs. Python callers have :class:`rompatch.workflows.store.Store`.

    Args:
        root: the store's folder.
        ledger: its database.
        blobs: its patch files.
        reporter: who hears notes and progress.
        max_memory, offload_folder: bounds of the bases loaded on the device "auto", as for
            :func:`rompatch.models.load_base`; on other devices they are refused.
    """

    root: Path
    ledger: Ledger
    blobs: Blobs
    reporter: Reporter
    max_memory: str | Mapping[str | int, str | int] | None = None
    offload_folder: Path | None = None
    _loaded: dict[tuple[BaseSpec, str], Base] = field(default_factory=dict)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()

    # The base

    def base_spec(self, model: str | None = None, dtype: str | None = None, module: str | None = None) -> BaseSpec:
        """The store's base, with whatever is named here instead. Reads only."""
        saved = BaseSpec(**self.ledger.setting(BASE_SETTING, {}))
        if model is None:
            return BaseSpec(saved.model, dtype or saved.dtype, module or saved.module)
        path = Path(model).expanduser()
        return BaseSpec(str(path.resolve()) if path.exists() else model, dtype, module)

    def spec_for(
        self,
        records: Sequence[PatchRecord],
        model: str | None = None,
        dtype: str | None = None,
        module: str | None = None,
    ) -> BaseSpec:
        """How to load the base of *records*: as told, else as it was loaded when they were made, else the store's.
        Reads only."""
        if model is not None or not records:
            return self.base_spec(model, dtype, module)
        saved = self.ledger.setting(_key(records[0].base_id))
        spec = self.base_spec() if saved is None else BaseSpec(**saved)
        return BaseSpec(spec.model, dtype or spec.dtype, module or spec.module)

    def remember_spec(self, base_id: str, spec: BaseSpec) -> None:
        """Remember how the base of id *base_id* was loaded. Writes, if it is news."""
        if self.ledger.setting(_key(base_id)) != vars(spec):
            self.ledger.set_setting(_key(base_id), vars(spec))

    def remember_base(self, spec: BaseSpec) -> None:
        """Make *spec* the store's base if it has none yet. Writes."""
        if self.ledger.setting(BASE_SETTING) is None:
            self.ledger.set_setting(BASE_SETTING, vars(spec))
            self.reporter.note(f"this store's base is now {spec.model}" + (f" ({spec.dtype})" if spec.dtype else ""))

    def base(self, spec: BaseSpec | None = None, *, device: str = "cpu") -> Base:
        """The base model, loaded once per store object and device.

        Args:
            spec: None is the base of the store's future patches; that of others is ``store.spec_for(records)``.
            device: where to put it: "cpu", "cuda:1", "mps"; "auto" spreads it, within the store's ``max_memory``.

        Raises:
            ModelError: it cannot be loaded.
        """
        from rompatch.models import load_base

        spec = spec or self.base_spec()
        if (spec, device) not in self._loaded:
            self._loaded[spec, device] = load_base(
                spec.model,
                dtype=spec.dtype,
                module=spec.module,
                device=device,
                max_memory=self.max_memory,
                offload_folder=self.offload_folder,
                on_progress=self.reporter.note,
            )
        return self._loaded[spec, device]

    # Patches and the stack

    def patches(
        self, subject: str | None = None, *, active: bool = False, limit: int | None = None
    ) -> tuple[PatchRecord, ...]:
        """The ledger's patches, newest first: of one subject, of the stack in force, so many, if asked. Reads only."""
        if not active:
            return self.ledger.patches(subject, limit=limit)
        newest = sorted(self.active(), key=lambda record: record.created_at, reverse=True)
        wanted = (record for record in newest if subject is None or same_text(record.subject, subject))
        return tuple(islice(wanted, limit))

    def resolve(self, name: str) -> PatchRecord:
        """The patch that an id, an id's prefix or a subject means. Reads only."""
        return self.ledger.resolve(name)

    def patch(self, name: str) -> Patch:
        """The patch with its numbers, read from its file and checked against its id."""
        return self.blobs.get(self.ledger.resolve(name).id)

    def labels(self, ids: Iterable[str]) -> dict[str, str]:
        """How messages name those patches, removed ones among them; an unknown one goes by its id. Reads only."""
        wanted = tuple(ids)
        return {one: one for one in wanted} | {record.id: record.label for record in self.ledger.records(wanted)}

    def stack(self) -> StackRecord | None:
        """The stack in force, None before the first patch. Reads only."""
        return self.ledger.active_stack()

    def active(self) -> tuple[PatchRecord, ...]:
        """The patches of the stack in force, in canonical order. Reads only."""
        stack = self.ledger.active_stack()
        return () if stack is None else self.ledger.members(stack)

    def chosen(self, names: Sequence[str] | None) -> tuple[PatchRecord, ...]:
        """The patches that *names* mean, each once; None: those of the stack in force. Reads only.

        Raises:
            PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
        """
        if names is None:
            return self.active()
        return tuple({record.id: record for record in map(self.resolve, names)}.values())

    def active_patches(self) -> list[Patch]:
        """The same with their numbers, each file checked against its id."""
        return [self.blobs.get(record.id) for record in self.active()]

    @contextmanager
    def session(
        self, names: Sequence[str] | None = None, *, spec: BaseSpec | None = None, device: str = "cpu"
    ) -> Iterator[PreTrainedModel]:
        """The transformers model with the stack in its weights, restored on exit.

        Args:
            names: patches to have active instead of the stack in force; an empty sequence gives the stack's base.
            spec: the base, where it is not the patches' own.

        Raises:
            PatchNotFoundError, AmbiguousIdError: a name means no patch, or several.
            ModelError, BaseMismatchError: the base cannot be loaded, or is not the patches' own.
        """
        from rompatch.apply.session import PatchedModel

        records = self.chosen(names)
        patches = [self.blobs.get(record.id) for record in records]
        spec = spec or self.spec_for(records or self.active())
        with PatchedModel(self.base(spec, device=device)) as patched:
            patched.activate(patches)
            yield patched.model


def _key(base_id: str) -> str:
    return f"base {base_id}"
