"""What the ledger hands out: frozen records. Rows and connections stay inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import RowMapping

from rompatch.edits import EditRequest
from rompatch.errors import RequestError, RompatchError, StoreError
from rompatch.patch import SHORT_ID, BaseRef, PatchHeader


@dataclass(frozen=True)
class BaseRecord:
    """A base the ledger knows. ``id`` is 64 hex digits over what identifies it (its source's name does not)."""

    id: str
    ref: BaseRef
    settings: Mapping[str, Any]
    first_seen: str


@dataclass(frozen=True)
class PatchRecord:
    """A patch the ledger knows.

    ``measurements`` holds what was measured while it was computed: probabilities before and after, losses, norms,
    seconds a phase. ``removed_at`` is set on tombstones: the file is gone, the row stays for the history. ``source`` is
    where the fact comes from; from the day ``expires_at`` (ISO 8601, UTC) on it counts as expired.
    """

    id: str
    base_id: str
    header: PatchHeader
    file_size: int
    created_at: str
    author: str | None
    message: str | None
    measurements: Mapping[str, Any]
    removed_at: str | None = None
    source: str | None = None
    expires_at: str | None = None

    @property
    def short_id(self) -> str:
        """The first twelve hex digits of the id."""
        return self.id[:SHORT_ID]

    @property
    def request(self) -> EditRequest:
        """The edit request it answers.

        Raises:
            RequestError: none, it is an imported adapter; ``header.request`` is None then.
        """
        if self.header.request is None:
            raise RequestError(
                f"Patch {self.label} changes no single fact: it was imported, and it has a title instead of a request.",
                next_step="Name a patch that `rompatch create` made.",
                patch_id=self.id,
            )
        return self.header.request

    @property
    def fact_cells(self) -> tuple[str, str, str]:
        """Prompt, true object ("?" where unknown) and new object, as tables show them; a title stands alone."""
        request = self.header.request
        if request is None:
            return self.subject, "", ""
        return request.prompt, request.target_true or "?", request.target_new

    @property
    def subject(self) -> str:
        """The subject s of its edit request, or the title of a patch that answers none."""
        return self.header.subject

    @property
    def label(self) -> str:
        """How messages name it: ``a1b2c3d4e5f6 (Eiffel Tower -> Rome)``."""
        return f"{self.short_id} ({self.header.label})"


@dataclass(frozen=True)
class StackRecord:
    """A named stack on one base; ``revision`` is its current revision's number, 0 while it was never changed."""

    name: str
    base_id: str
    revision: int


ACTIONS = frozenset(
    ("create", "apply", "revert", "clear", "restore", "checkout", "merge", "supersede", "import", "drop")
)
"""What a revision may be: at most 16 letters each. "drop" is the last revision of a removed stack."""


@dataclass(frozen=True)
class RevisionRecord:
    """One numbered revision of a stack.

    Args:
        members: active after it; ``added``, ``removed``: what changed.
        action: one of :data:`ACTIONS`.
        details: more about it: overridden gates with their reasons, what a merge or a checkout took, superseded pairs.
    """

    stack: str
    number: int
    parent: int | None
    created_at: str
    author: str | None
    action: str
    message: str | None
    reason: str | None
    members: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def superseded(self) -> tuple[str, ...]:
        """Ids of the patches that were taken off because another one replaces them."""
        return tuple(old for _, old in superseded_pairs(self.details))

    @property
    def overridden(self) -> tuple[str, ...]:
        """The gates that were passed over, each once."""
        return overridden_gates(self.details)

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        lists = {name: list(getattr(self, name)) for name in ("members", "added", "removed")}
        return vars(self) | lists | {"details": dict(self.details)}


@dataclass(frozen=True)
class TagRecord:
    """A name that a revision of a stack was given."""

    stack: str
    name: str
    revision: int
    created_at: str
    author: str | None
    message: str | None


@dataclass(frozen=True)
class FactEvent:
    """One thing that happened to a patch on some subject.

    Args:
        kind: "create" or "remove" (the patch itself), "on" or "off" (a stack).
        action: of the revision that put it on or took it off.
        others: ids of the patches that it replaced ("on") or was replaced by ("off").
        overridden: gates that were passed over to put it on.
    """

    at: str
    kind: str
    patch_id: str
    stack: str | None = None
    revision: int | None = None
    action: str | None = None
    others: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    author: str | None = None
    message: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ScoreRecord:
    """One number of a verification: ``phase`` "pre" or "post", over ``n`` prompts; ``value`` None where undefined."""

    phase: str
    metric: str
    value: float | None
    n: int


@dataclass(frozen=True)
class VerificationRecord:
    """One run of a suite, of one patch, or of a stack's revision, or of both."""

    id: int
    patch_id: str | None
    stack: str | None
    revision: int | None
    suite: str
    suite_source: str
    created_at: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    prompts: Any
    scores: tuple[ScoreRecord, ...]

    def score(self, metric: str, phase: str = "post") -> float | None:
        """The value of *metric*, None where it was not measured or is undefined."""
        return next((score.value for score in self.scores if (score.phase, score.metric) == (phase, metric)), None)


@dataclass(frozen=True)
class HistoryEvent:
    """One line of the log.

    ``kind``: "create", "remove" (a patch), "stack" (a stack came to be), another of :data:`ACTIONS` (a revision),
    "tag", "verify". ``patch_ids`` and ``subjects`` run in parallel; ``added`` and ``removed`` are those of a revision.
    ``tag`` is the name that a revision was given.
    """

    at: str
    kind: str
    patch_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    stack: str | None = None
    revision: int | None = None
    verification: int | None = None
    suite: str | None = None
    author: str | None = None
    message: str | None = None
    reason: str | None = None
    tag: str | None = None


def decoded(text: Any, what: str) -> Any:
    """The JSON value in a column.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(
            f"The ledger is damaged: the {what} cannot be read ({error}).", next_step="Restore it from a backup."
        ) from error


def superseded_pairs(details: Any) -> tuple[tuple[str, str], ...]:
    """Pairs of a patch and the one that it replaced, as a revision's details have them; what is no pair is left out."""
    pairs = details.get("superseded", ()) if isinstance(details, Mapping) else ()
    listed = [pair for pair in pairs if isinstance(pair, Mapping) and {"new", "old"} <= pair.keys()]
    return tuple((str(pair["new"]), str(pair["old"])) for pair in listed)


def overridden_gates(details: Any, patch_id: str | None = None) -> tuple[str, ...]:
    """The gates that a revision's details say were passed over, each once; of one patch and of the whole, if asked."""
    results = details.get("overridden", ()) if isinstance(details, Mapping) else ()
    named = [one for one in results if isinstance(one, Mapping) and "gate" in one]
    wanted = [one for one in named if patch_id is None or one.get("patch_id") in (None, patch_id)]
    return tuple(dict.fromkeys(str(one["gate"]) for one in wanted))


def base_from(row: RowMapping) -> BaseRecord:
    """A row of ``bases`` as a record."""
    names = ("source", "model_type", "config_hash", "tokenizer_hash", "dtype")
    ref = BaseRef(**{name: row[name] for name in names})
    return BaseRecord(row["id"], ref, decoded(row["settings"], "settings of a base"), row["first_seen"])


def patch_from(row: RowMapping) -> PatchRecord:
    """A row of ``patches`` as a record.

    Raises:
        StoreError: its header is damaged.
    """
    try:
        header = PatchHeader.from_json(json.loads(row["header"]))
        measurements = json.loads(row["measurements"])
    except (KeyError, TypeError, ValueError, AttributeError, RompatchError) as error:
        raise StoreError(
            f"The ledger's row of patch {str(row['id'])[:SHORT_ID]} is damaged: {error}.",
            next_step="Run `rompatch fsck`; the patch file itself may still be whole.",
        ) from error
    names = ("id", "base_id", "file_size", "created_at", "author", "message", "removed_at", "source", "expires_at")
    return PatchRecord(header=header, measurements=measurements, **{name: row[name] for name in names})


def verification_from(row: RowMapping, scores: Iterable[RowMapping]) -> VerificationRecord:
    """A row of ``verifications`` joined with its stack, and its rows of ``scores``, as a record."""
    names = ("id", "patch_id", "stack", "revision", "suite", "suite_source", "created_at")
    return VerificationRecord(
        **{name: row[name] for name in names},
        **{
            name: decoded(row[name], f"{name} of verification {row['id']}")
            for name in ("settings", "environment", "prompts")
        },
        scores=tuple(ScoreRecord(score["phase"], score["metric"], score["value"], score["n"]) for score in scores),
    )
