"""What a bundle may be, and the one way to say what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from rompatch.errors import BundleError
from rompatch.patchfile.checks import DamageError

MAX_BUNDLE_BYTES = 1 << 30
MAX_MANIFEST_BYTES = 1 << 24
MAX_SIGNATURE_BYTES = 1 << 16
MAX_PATCHES = 1 << 14
MAX_REVISIONS = 1 << 16
"""Limits of format 1 (docs/bundle-format.md, "Limits"): bytes of the whole, of the manifest and of the signature;
patches, and revisions of the history."""

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
RUNS = "runs.json"
_PATCH = re.compile(r"patches/([0-9a-f]{64})\.safetensors")

_AGAIN = "Get it again from where it came, or export it anew with `rompatch bundle export`."


def patch_entry(patch_id: str) -> str:
    """The name of a patch's entry."""
    return f"patches/{patch_id}.safetensors"


def patch_of_entry(name: str) -> str | None:
    """The id in the name of a patch's entry; None for every other name."""
    found = _PATCH.fullmatch(name)
    return None if found is None else found[1]


def is_known(name: str) -> bool:
    """Whether an entry may have that name. No other is ever read, and no name becomes a path."""
    return name in (MANIFEST, SIGNATURE, RUNS) or patch_of_entry(name) is not None


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn every way of failing inside into a ``BundleError`` that names the file."""
    try:
        yield
    except DamageError as error:
        raise BundleError(
            f"The bundle {name} cannot be used: {error.problem}.",
            expected=error.expected,
            found=error.found,
            next_step=error.next_step if error.next_step.startswith(("Upgrade", "Name")) else _AGAIN,
            file=name,
        ) from None
    except OSError as error:
        raise BundleError(
            f"The bundle {name} cannot be read: {error.strerror or error}.",
            next_step="Check the path and its permissions.",
            file=name,
        ) from error
