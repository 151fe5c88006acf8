"""A data set by name: a file, a folder, an alias, or a web address that is fetched once and kept with its hash.

    DATASET                             file
    counterfact-300.json                that file
    ./data                              the file in that folder with a published name, or its only .json file
    counterfact | known_1000 | zsre     the authors' publication, in the cache after the first use
    https://...                         the same for any address

No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from rompatch.default_model import Progress, cache_root, file_sha256
from rompatch.errors import OutputError, SuiteError
from rompatch.patchfile import atomic_write
from rompatch.verify.download import download
from rompatch.verify.reading import FORM_NAMES, FormName, Mode, Record, RecordSet, read_records

PUBLISHED = "https://rome.baulab.info/data/dsets/"
"""Where the authors of ROME publish their data sets."""


@dataclass(frozen=True)
class Published:
    """A data set that has an alias.

    Args:
        url: where it is published.
        names: what its file is called, there and in folders; ``*`` stands for anything. Earlier ones are preferred.
    """

    url: str
    names: tuple[str, ...]


ALIASES: dict[FormName, Published] = {
    "counterfact": Published(PUBLISHED + "counterfact.json", ("counterfact.json", "counterfact*.json")),
    "known_1000": Published(PUBLISHED + "known_1000.json", ("known_1000.json",)),
    "zsre": Published(PUBLISHED + "zsre_mend_eval.json", ("zsre_mend_eval.json", "zsre*eval*.json", "zsre*.json")),
}


@dataclass(frozen=True)
class Dataset:
    """A data set's file.

    Args:
        spec: what the user named.
        path: the file.
        sha256: of its bytes: two runs are about the same records only if this is the same.
        form: which data set it is, as far as the name tells; None: its records tell.
        url: where it was fetched from, if it was.
    """

    spec: str
    path: Path
    sha256: str
    form: FormName | None = None
    url: str | None = None


def open_dataset(
    spec: str, *, form: FormName | None = None, sha256: str | None = None, on_progress: Progress | None = None
) -> Dataset:
    """The file that *spec* names: an existing file or folder, else an alias, else a web address.

    Args:
        form: which data set a folder is searched for; None: any.
        sha256: what the file must have; None: no expectation, except that a fetched file is still as it was fetched.
        on_progress: called with a sentence when something is fetched.

    Raises:
        SuiteError: nothing answers to *spec*, a folder has no such file or several, or the file has another hash.
        DownloadError: the file did not arrive; says the address and where to put it by hand.
    """
    note = on_progress or (lambda text: None)
    sha256 = None if sha256 is None else sha256.lower()
    path = Path(spec).expanduser()
    if path.exists():
        return _local(spec, path, form, sha256)
    if spec in FORM_NAMES:
        return _fetched(spec, ALIASES[spec].url, spec, sha256, note)
    if re.match(r"[a-z][a-z0-9+.-]*://", spec, re.IGNORECASE):
        return _fetched(spec, spec, form, sha256, note)
    raise SuiteError(
        f"There is no data set {spec!r}.",
        expected=f"a file, a folder, an address (https://...) or one of {', '.join(FORM_NAMES)}",
        found=f"no file or folder at {path.absolute()}",
        next_step="Check the spelling.",
    )


def load_dataset(
    spec: str,
    *,
    form: FormName | None = None,
    sha256: str | None = None,
    mode: Mode = "strict",
    on_progress: Progress | None = None,
) -> tuple[Dataset, RecordSet[Record]]:
    """The file that *spec* names, and its records.

    Raises:
        SuiteError, DownloadError: from :func:`open_dataset` and :func:`~rompatch.verify.reading.read_records`.
    """
    dataset = open_dataset(spec, form=form, sha256=sha256, on_progress=on_progress)
    return dataset, read_records(dataset.path, form or dataset.form, mode)


def cached_path(url: str) -> Path:
    """Where the file at *url* is kept, or may be put by hand."""
    path = re.sub(r"^\w+://[^/]*|[?#].*", "", url, flags=re.DOTALL)
    name = re.sub(r"[^\w.-]", "_", unquote(path).rsplit("/", 1)[-1]).lstrip(".") or "data.json"
    return cache_root() / "datasets" / hashlib.sha256(url.encode()).hexdigest()[:12] / name[-100:]


def _local(spec: str, path: Path, form: FormName | None, sha256: str | None) -> Dataset:
    if path.is_dir():
        path, form = _in_folder(path, form)
    try:
        found = file_sha256(path)
    except OSError as problem:
        raise SuiteError(f"The data set {str(path)!r} cannot be read.", found=problem.strerror) from problem
    _check_hash(path, found, sha256)
    return Dataset(spec, path, found, form)


def _in_folder(folder: Path, form: FormName | None) -> tuple[Path, FormName | None]:
    """The one file in *folder* that a name in :data:`ALIASES` matches, else its only .json file."""
    wanted = (form,) if form else FORM_NAMES
    hits: dict[Path, FormName | None] = {}
    for name in wanted:
        matches = (sorted(p for p in folder.glob(pattern) if p.is_file()) for pattern in ALIASES[name].names)
        hits |= dict.fromkeys(next((found for found in matches if found), []), name)
    if not hits:
        hits = dict.fromkeys(sorted(path for path in folder.glob("*.json") if path.is_file()), form)
    if len(hits) == 1:
        return next(iter(hits.items()))
    names = [name for form_name in wanted for name in ALIASES[form_name].names]
    raise SuiteError(
        f"The folder {str(folder)!r} does not tell which data set is meant.",
        expected=f"one file called {', '.join(names)}, or a single .json file",
        found=", ".join(path.name for path in hits) or "no .json file",
        next_step="Name the file itself.",
    )


def _fetched(spec: str, url: str, form: FormName | None, sha256: str | None, note: Progress) -> Dataset:
    path = cached_path(url)
    recorded = _recorded_hash(path)
    found = file_sha256(path) if path.is_file() else None
    if found is not None and recorded not in (None, found):
        note(f"{path} is no longer as it was fetched; fetching it again")
        found = None
    if found is None:
        download(url, path, note, sha256)
        found = file_sha256(path)
        note(f"stored as {path}")
    _check_hash(path, found, sha256)
    if found != recorded:  # just fetched, or put there by hand
        _record(path, url, found)
    return Dataset(spec, path, found, form, url)


def _check_hash(path: Path, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise SuiteError(
            f"The data set {str(path)!r} is not the expected one.",
            expected=f"sha256 {expected}",
            found=f"sha256 {found}, {path.stat().st_size:,} bytes",
            next_step="Name the right file, or leave the hash out.",
        )


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def _recorded_hash(path: Path) -> str | None:
    try:
        found = json.loads(_hash_file(path).read_text(encoding="utf-8"))
        return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not recorded, or the record is damaged: recorded anew


def _record(path: Path, url: str, sha256: str) -> None:
    facts = {"bytes": os.path.getsize(path), "sha256": sha256, "url": url}
    try:
        atomic_write(_hash_file(path), (json.dumps(facts, indent=1) + "\n").encode())
    except OutputError:
        if not os.access(path.parent, os.W_OK):  # a cache that is only read: the file is checked when it is named
            return
        raise
