"""list, show, log, status: what the ledger knows, read and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rompatch.errors import RequestError
from rompatch.store.records import FactEvent, HistoryEvent, PatchRecord, StackRecord, VerificationRecord
from rompatch.workflows.opened import BASE_SETTING, BaseSpec, OpenStore
from rompatch.workflows.provenance import is_expired, today


@dataclass(frozen=True)
class Listing:
    """One page of patches, newest first, and the ids of those that are active; ``more``: older ones follow."""

    patches: tuple[PatchRecord, ...]
    active: frozenset[str]
    limit: int | None
    offset: int
    more: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        patches = [patch_json(record, record.id in self.active) for record in self.patches]
        return {"patches": patches, "limit": self.limit, "offset": self.offset, "more": self.more}


@dataclass(frozen=True)
class Chain:
    """What happened to the facts about one subject: its patches by id, and the events, oldest first."""

    subject: str
    patches: dict[str, PatchRecord]
    events: tuple[FactEvent, ...]
    active: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "subject": self.subject,
            "patches": [
                patch_json(record, one in self.active) | {"removed_at": record.removed_at}
                for one, record in self.patches.items()
            ],
            "events": [
                vars(event) | {"others": list(event.others), "overridden": list(event.overridden)}
                for event in self.events
            ],
        }


@dataclass(frozen=True)
class Details:
    """One patch: its record, where its file is, whether it is active, and its verifications, newest first.

    ``imported``: when a bundle first brought it, which may be long after it was made elsewhere.
    """

    record: PatchRecord
    path: Path
    active: bool
    verifications: tuple[VerificationRecord, ...]
    imported: FactEvent | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            **patch_json(self.record, self.active),
            "imported": None
            if self.imported is None
            else {name: getattr(self.imported, name) for name in ("at", "stack", "revision", "author")},
            "path": str(self.path),
            "header": self.record.header.to_json(),
            "measurements": dict(self.record.measurements),
            "verifications": [verification_json(run) for run in self.verifications],
        }


@dataclass(frozen=True)
class Page:
    """One page of the log, newest first; ``more``: older events follow."""

    events: tuple[HistoryEvent, ...]
    limit: int
    offset: int
    more: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "events": [event_json(event) for event in self.events],
            "limit": self.limit,
            "offset": self.offset,
            "more": self.more,
        }


@dataclass(frozen=True)
class Status:
    """What is in force: store, base of future patches, stack, active patches; and how many patches there are."""

    root: Path
    base: BaseSpec
    base_chosen: bool
    stack: StackRecord | None
    active: tuple[PatchRecord, ...]
    n_patches: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        stack = self.stack
        return {
            "store": str(self.root),
            "base": vars(self.base) | {"chosen": self.base_chosen},
            "stack": None if stack is None else {"name": stack.name, "revision": stack.revision},
            "active": [patch_json(record, True) for record in self.active],
            "expired": [record.id for record in self.expired],
            "n_patches": self.n_patches,
        }

    @property
    def expired(self) -> tuple[PatchRecord, ...]:
        """Active patches whose day has come."""
        return tuple(record for record in self.active if is_expired(record))


def listing(
    store: OpenStore,
    subject: str | None = None,
    *,
    active_only: bool = False,
    expired_only: bool = False,
    limit: int | None = None,
    offset: int = 0,
) -> Listing:
    """One page of patches, newest first: of one subject, of the active stack, expired ones, if asked. Reads only.

    Raises:
        RequestError: a negative limit or offset.
    """
    _not_negative(limit=limit, offset=offset)
    stack = store.stack()
    active = frozenset(() if stack is None else store.ledger.member_ids(stack))
    beyond = None if limit is None else limit + 1
    if active_only:
        wanted = (one for one in store.patches(subject, active=True) if not expired_only or is_expired(one))
        found = tuple(islice(wanted, offset, None if beyond is None else offset + beyond))
    else:
        day = today() if expired_only else None
        found = store.ledger.patches(subject, expired_on=day, limit=beyond, offset=offset)
    return Listing(found[:limit], active, limit, offset, limit is not None and len(found) > limit)


def chain(store: OpenStore, name: str) -> Chain:
    """What happened to the facts about one subject, oldest first. Reads only.

    Args:
        name: a subject, or a patch (its id or a prefix) whose subject is meant.

    Raises:
        PatchNotFoundError, AmbiguousIdError: *name* means nothing, or several patches that are not on one subject.
    """
    patches, events = store.ledger.fact_history(name)
    if not patches:
        patches, events = store.ledger.fact_history(store.resolve(name).subject)
    stack = store.stack()
    active = frozenset(() if stack is None else store.ledger.member_ids(stack))
    return Chain(patches[-1].subject, {record.id: record for record in patches}, events, active)


def details(store: OpenStore, name: str) -> Details:
    """Everything about the patch that *name* means. Reads only; the file itself is not opened.

    Raises:
        PatchNotFoundError, AmbiguousIdError: it means no patch, or several.
    """
    record = store.resolve(name)
    stack = store.stack()
    active = stack is not None and record.id in store.ledger.member_ids(stack)
    runs = store.ledger.verifications(record.id)
    _, events = store.ledger.fact_history(record.subject)
    imported = next(
        (one for one in events if (one.patch_id, one.kind, one.action) == (record.id, "on", "import")), None
    )
    return Details(record, store.blobs.path(record.id), active, runs, imported)


def history(store: OpenStore, *, limit: int = 20, offset: int = 0) -> Page:
    """One page of what happened, newest first. Reads only.

    Raises:
        RequestError: a negative limit or offset.
    """
    _not_negative(limit=limit, offset=offset)
    events = store.ledger.history(limit=limit + 1, offset=offset)
    return Page(events[:limit], limit, offset, len(events) > limit)


def status(store: OpenStore) -> Status:
    """What is in force. Reads only."""
    chosen = store.ledger.setting(BASE_SETTING) is not None
    return Status(store.root, store.base_spec(), chosen, store.stack(), store.active(), store.ledger.count_patches())


def patch_json(record: PatchRecord, active: bool) -> dict[str, Any]:
    """A patch as lists show it. One without a request has its title as its subject, and nulls for the rest."""
    request = record.header.request
    nothing = dict.fromkeys(("relation", "subject", "target_new", "target_true", "template"))
    return {
        "id": record.id,
        "active": active,
        **(nothing if request is None else request.to_json()),
        "subject": record.subject,
        "prompt": None if request is None else request.prompt,
        "title": record.header.title,
        "method": record.header.method,
        "base": record.header.base.source,
        "dtype": record.header.base.dtype,
        "layers": [site.layer for site in record.header.sites],
        "created_at": record.created_at,
        "author": record.author,
        "message": record.message,
        "source": record.source,
        "expires_at": record.expires_at,
        "expired": is_expired(record),
        "file_size": record.file_size,
    }


def verification_json(run: VerificationRecord) -> dict[str, Any]:
    """A verification without its prompts."""
    return {
        "run": run.id,
        "suite": run.suite,
        "source": run.suite_source,
        "created_at": run.created_at,
        "stack": run.stack,
        "revision": run.revision,
        "settings": dict(run.settings),
        "environment": dict(run.environment),
        "scores": [vars(score) for score in run.scores],
    }


def event_json(event: HistoryEvent) -> dict[str, Any]:
    """One line of the log."""
    return vars(event) | {name: list(getattr(event, name)) for name in ("patch_ids", "subjects", "added", "removed")}


def _not_negative(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 0:
            raise RequestError(f"The {name} must not be negative.", found=number)
