"""Every error rompatch raises on purpose, as one tree.

    RompatchError
    ├── RequestError            the edit request itself cannot be carried out
    │   ├── SubjectError        the subject is missing from a prompt, empty, or too long
    │   └── TargetError         an object is empty, or old and new object are the same
    ├── ModelError              the base model cannot be loaded or used
    │   ├── UnknownModelError   no folder, GGUF file, alias or hub id of that name
    │   ├── ArchitectureError   the down-projection cannot be found unambiguously
    │   ├── SiteError           a layer or module that the model does not have
    │   └── DownloadError       a download did not arrive whole
    ├── BaseMismatchError       a patch was computed for other weights or another tokenizer
    ├── PatchFileError          a patch file is truncated, damaged or hostile
    ├── AdapterError            an adapter to be imported is damaged, or of a kind that no patch can hold
    ├── BundleError             a bundle is truncated, damaged, hostile, or not signed as demanded
    ├── StatisticsError         key statistics are missing, damaged or not finite
    ├── ComputeError            the optimisation or a solve left the finite numbers
    ├── SuiteError              a suite of prompts cannot be read or built
    ├── StoreError              the store cannot be opened or used
    │   ├── SchemaError         its ledger has a newer (or unreadable) schema
    │   ├── PatchNotFoundError  no patch, run or base of that name
    │   ├── AmbiguousIdError    an id prefix or subject names several
    │   └── ConflictError       the ledger's state forbids the change (still applied, already there)
    │       └── StaleStackError the stack was changed after the change was planned
    ├── OutputError             an output exists already or cannot be written
    ├── GateError               a verification gate failed (exit code 3)
    └── PartialError            some of many failed, the others are done (exit code 3)

An error is a small paragraph: what was asked, what was expected, what was found, what to do next. The facts are
attributes (``expected``, ``found``, ``next_step``, plus whatever the raiser names), the command line alone turns them
into text.
"""

from __future__ import annotations

from typing import Any


class RompatchError(Exception):
    """Base of the tree. ``exit_code`` is what the command line returns for it.

    Args:
        message: what was asked and what went wrong, one sentence or two.
        expected: what would have been right, if that can be said.
        found: what was there instead.
        next_step: what the user can do now; a command where there is one.
        facts: further attributes for programs (``patch_id=...``).
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        next_step: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.found = found
        self.next_step = next_step
        self.facts = facts
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected is not None:
            parts.append(f"Expected: {self.expected}.")
        if self.found is not None:
            parts.append(f"Found: {self.found}.")
        if self.next_step:
            parts.append(self.next_step)
        return " ".join(parts)


class RequestError(RompatchError):
    """The edit request cannot be carried out as written."""

    exit_code = 2


class SubjectError(RequestError):
    """The subject is empty, missing from the prompt, or longer than the model's context."""


class TargetError(RequestError):
    """An object is empty, tokenises to nothing, or old and new object are the same."""


class ModelError(RompatchError):
    """The base model cannot be loaded or used."""


class UnknownModelError(ModelError):
    """Neither a folder, a GGUF file, an alias nor a reachable hub id."""


class ArchitectureError(ModelError):
    """The MLP down-projection cannot be found, or more than one module could be it."""


class SiteError(ModelError):
    """A layer or module that this model does not have."""


class DownloadError(ModelError):
    """A download failed, was interrupted, or has the wrong sha256."""


class BaseMismatchError(RompatchError):
    """A patch was computed for other weights, another tokenizer or another configuration."""


class PatchFileError(RompatchError):
    """A patch file is truncated, damaged, hostile or of a newer format."""


class AdapterError(RompatchError):
    """An adapter to be imported is damaged, or of a kind that a patch cannot hold."""


class BundleError(RompatchError):
    """A bundle is truncated, damaged, hostile, of a newer format, or not signed by whom it should be."""


class StatisticsError(RompatchError):
    """Key statistics are missing, damaged, for another model, or not finite."""


class ComputeError(RompatchError):
    """A computation left the finite numbers or could not be solved."""


class SuiteError(RompatchError):
    """A suite of prompts cannot be read, is malformed, or cannot be built."""

    exit_code = 2


class StoreError(RompatchError):
    """The store cannot be opened, read or written."""


class SchemaError(StoreError):
    """The ledger's schema is newer than this rompatch knows, or unreadable."""


class PatchNotFoundError(StoreError):
    """No patch (or other record) answers to that name."""

    exit_code = 4


class AmbiguousIdError(StoreError):
    """An id prefix or a subject names more than one record."""

    exit_code = 4


class ConflictError(StoreError):
    """The ledger's state forbids the change."""


class StaleStackError(ConflictError):
    """Somebody changed the stack after this change was planned: plan again."""


class OutputError(RompatchError):
    """An output path exists already, or writing it failed."""


class GateError(RompatchError):
    """A verification gate (``--min-score`` and its like) was not met."""

    exit_code = 3


class PartialError(RompatchError):
    """Some parts of a job failed; the others are done and kept."""

    exit_code = 3
