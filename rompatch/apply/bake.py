"""Bake: a checkpoint folder in, a checkpoint folder out, the model never loaded.

Every file is copied byte for byte (sharing the disk blocks where the file system can), then the bytes of the edited
tensors alone are written over, at their own offsets in the copy. So configuration, tokenizer, shards, metadata and
every other tensor are the base's own, and a model larger than the memory is no trouble. The folder appears whole or
not at all (:mod:`rompatch.folders`), and the base is only ever opened for reading.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rompatch.apply.checkpoint import INDEX, SINGLE, StoredTensor, match_name, shard_names, stored_tensors
from rompatch.errors import BaseMismatchError, ModelError, OutputError
from rompatch.folders import building
from rompatch.sites import dtype_name, tensor_sha256

CARD = "README.md"
MANIFEST = "rompatch_manifest.json"
KEPT_AS = {CARD: "README.base.md", MANIFEST: "rompatch_manifest.base.json"}
"""What the base's own card and manifest are called in the output."""

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".safetensors")
"""Further forms of the same weights: carried over, they would still be the unedited model. The checkpoint's own
safetensors files are not among them."""

SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})


@dataclass(frozen=True)
class Rewritten:
    """One tensor that differs from the base: its name in the model and in the checkpoint, and both hashes."""

    parameter: str
    stored_as: str
    shard: str
    sha256_before: str
    sha256_after: str


@dataclass(frozen=True)
class BakeReport:
    """What a bake wrote.

    Args:
        folder: the new checkpoint.
        files: how many files are in it.
        size: bytes in all of them.
        rewritten: the tensors that differ from the base, in order of name.
        left_out: files of the base that hold its weights in another form, relative to it.
    """

    folder: Path
    files: int
    size: int
    rewritten: tuple[Rewritten, ...]
    left_out: tuple[str, ...]


def bake_folder(
    base_folder: Path,
    out: Path,
    replacements: Mapping[str, torch.Tensor],
    *,
    card: str,
    manifest: Mapping[str, Any],
    expected_sha256: Mapping[str, str],
) -> BakeReport:
    """Write *out*: the checkpoint in *base_folder* with some tensors replaced.

    Args:
        base_folder: a Hugging Face folder with safetensors weights, in one file or in shards.
        out: the folder to make; must not exist, and must not lie inside the base.
        replacements: parameter name in the model to the whole new tensor, as the module stores it, in the
            checkpoint's dtype.
        card: text of the new README.md; the base's own becomes README.base.md.
        manifest: JSON object for ``rompatch_manifest.json``.
        expected_sha256: for each replacement the hash of the base's tensor that it was computed from.

    Raises:
        OutputError: *out* exists or lies inside the base, the disk is full, the weights are pickled.
        BaseMismatchError: a tensor's content, dtype or shape in the folder is not the one expected.
        SiteError: a parameter is not in the checkpoint.
        ModelError: the base folder is damaged or incomplete.
    """
    base_folder, out = base_folder.resolve(), Path(os.path.abspath(out))
    _refuse_bad_output(base_folder, out)
    if not base_folder.is_dir():
        raise ModelError(f"There is no checkpoint folder {base_folder} to bake from.")
    places = _places(base_folder, replacements, expected_sha256)
    files, left_out = _plan(base_folder)
    try:
        with building(out) as work:
            for source, name in files:
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                copy_file(base_folder / source, work / name)
            rewritten = tuple(
                _rewrite(work, places[name], name, replacements[name], expected_sha256[name]) for name in sorted(places)
            )
            (work / CARD).write_text(card, encoding="utf-8")
            text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
            (work / MANIFEST).write_text(text + "\n", encoding="utf-8")
            _read_back(base_folder, work, files, rewritten, places)
            sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
    except FileExistsError as error:
        raise _exists(out) from error
    except OSError as error:
        raise _unwritable(base_folder, out, error) from error
    return BakeReport(out, len(sizes), sum(sizes), rewritten, left_out)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of *source* to the new file *target*, sharing disk blocks where the file system can."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        try:
            copied = 0
            while copied < size:
                step = os.copy_file_range(reader.fileno(), writer.fileno(), min(size - copied, 1 << 30))
                if step == 0:
                    break
                copied += step
            if copied == size:
                return
        except AttributeError:
            pass  # not on this system
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                raise
        reader.seek(0)
        writer.seek(0)
        writer.truncate()
        shutil.copyfileobj(reader, writer, 1 << 22)


def _refuse_bad_output(base_folder: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise _exists(out)
    if base_folder in (out.resolve(), *out.resolve().parents):
        raise OutputError(
            f"The output {out} lies inside the base {base_folder}, which is never written to.",
            next_step="Name a folder elsewhere.",
        )


def _places(
    folder: Path, replacements: Mapping[str, torch.Tensor], expected_sha256: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """Parameter name to its place in the checkpoint, all of them checked before anything is written."""
    stored = stored_tensors(folder)
    places = {name: stored[match_name(name, stored)] for name in replacements}
    taken: dict[str, str] = {}
    for name, place in places.items():
        if place.name in taken:
            raise OutputError(f"{name} and {taken[place.name]} are one tensor in the checkpoint, {place.name}.")
        taken[place.name] = name
        tensor = replacements[name]
        wanted, found = (dtype_name(tensor.dtype), tuple(tensor.shape)), (place.dtype, place.shape)
        if wanted != found or place.size != tensor.numel() * tensor.element_size():
            raise BaseMismatchError(
                f"The new {name} does not fit its place in {folder}.",
                expected=f"{wanted[0]} {wanted[1]}",
                found=f"{found[0]} {found[1]}, {place.size} bytes",
                next_step="Bake from the base in the dtype it was patched in; "
                "for another dtype load it so, and save that folder first.",
                parameter=name,
            )
        sha256 = place.sha256(folder)
        if sha256 != expected_sha256[name]:
            raise BaseMismatchError(
                f"The tensor {place.name} in {folder} is not the one that the patches were computed for.",
                expected=f"sha256 {expected_sha256[name]}",
                found=f"sha256 {sha256}",
                next_step="Bake from the patches' own base, or compute them anew on this one.",
                parameter=name,
            )
    return places


def _plan(folder: Path) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Files to copy, as (path in the base, path in the output), and files to leave out."""
    shards = shard_names(folder)
    own = set(shards) if SINGLE in shards else {*shards, INDEX}
    names = list(_files(folder))
    kept = [name for name in names if name in own or not _is_other_weights(name)]
    # A base that was itself baked has files of the new names; its newest card and manifest are the ones to keep.
    moved = {old: new for old, new in KEPT_AS.items() if old in kept}
    copied = [(name, moved.get(name, name)) for name in kept if name not in moved.values()]
    return copied, tuple(name for name in names if name not in kept)


def _files(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file():  # a link to one too: the hub's cache consists of links
                yield path.relative_to(folder).as_posix()


def _is_other_weights(name: str) -> bool:
    file = name.rsplit("/", 1)[-1].removesuffix(".index.json")
    return file.endswith(OTHER_WEIGHTS) and not file.startswith("tokenizer")


def _rewrite(folder: Path, place: StoredTensor, name: str, tensor: torch.Tensor, before: str) -> Rewritten:
    data = tensor.detach().cpu().contiguous()
    with (folder / place.shard).open("r+b") as file:
        file.seek(place.start)
        file.write(data.reshape(-1).view(torch.uint8).numpy().data)
    return Rewritten(name, place.name, place.shard, before, tensor_sha256(data))


def _read_back(
    base_folder: Path,
    work: Path,
    files: list[tuple[str, str]],
    rewritten: tuple[Rewritten, ...],
    places: Mapping[str, StoredTensor],
) -> None:
    for source, name in files:
        if (base_folder / source).stat().st_size != (work / name).stat().st_size:
            raise OSError(errno.EIO, f"{name} was not copied whole; did the base change meanwhile?")
    for tensor in rewritten:
        if places[tensor.parameter].sha256(work) != tensor.sha256_after:
            raise OSError(errno.EIO, f"{tensor.stored_as} reads back otherwise than it was written")


def _exists(out: Path) -> OutputError:
    return OutputError(
        f"{out} exists already.",
        expected="a folder that is not there yet",
        next_step="Name another one, or remove it first; a bake overwrites nothing.",
    )


def _unwritable(base_folder: Path, out: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    needed = sum((base_folder / name).stat().st_size for name in _files(base_folder)) // 1_000_000 + 1
    return OutputError(
        f"The checkpoint {out} could not be written, and nothing of it was left there.",
        expected=f"about {needed} MB of space" if full else "a place that can be written to",
        found=error.strerror or str(error),
        next_step="Make room, or name a folder on another disk." if full else "Check the path and its permissions.",
    )
