"""Bake: a checkpoint folder in, a checkpoint folder out, the model never loaded, nor torch where there is no pickle.

Every file is copied byte for byte (sharing the disk blocks where the file system can), then the bytes of the edited
tensors alone are written over, some rows at a time, at their own offsets in the copy. So configuration, tokenizer,
shards, metadata and every other tensor are the base's own, and neither a model nor a tensor larger than the memory is
any trouble. The folder appears whole or not at all (:mod:`rompatch.folders`), and the base is only ever opened for
reading.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rompatch.apply import pickled
from rompatch.apply.checkpoint import Layout, find_layout, match_name, stored_tensors
from rompatch.apply.copying import OnBytes, copy_file, link_file
from rompatch.apply.floats import STORAGE, decode, encode
from rompatch.apply.rounding import Probe, Rounding, RoundingMeter
from rompatch.apply.rows import exact_rows, row_blocks
from rompatch.apply.solve import SiteUpdate
from rompatch.apply.stored import StoredTensor
from rompatch.errors import BaseMismatchError, ModelError, OutputError
from rompatch.folders import building, sync_tree
from rompatch.patch import SiteRef

CARD = "README.md"
MANIFEST = "rompatch_manifest.json"
BASE_MANIFEST = "rompatch_manifest.base.json"
"""What the manifest of a base that was itself baked is called in the output."""

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".safetensors")
"""Further forms of the same weights: carried over, they would still be the unedited model. The checkpoint's own
safetensors files are not among them."""

SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})


@dataclass(frozen=True, eq=False)
class Edit:
    """What happens to one tensor.

    Args:
        site: where it is, and what it must be in the base.
        update: what is added to it.
        probes: patches whose keys tell how much of the update the cast leaves.
    """

    site: SiteRef
    update: SiteUpdate
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Rewritten:
    """One tensor that differs from the base: its names in the model and in the checkpoint, its place, both hashes."""

    parameter: str
    stored_as: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    sha256_before: str
    sha256_after: str
    rounding: tuple[Rounding, ...] = ()


@dataclass(frozen=True)
class Written:
    """The weights as they were written, from which the card and the manifest are made.

    Args:
        rewritten: the tensors that differ from the base, in order of name.
        base_tensors: name in the checkpoint to sha256 of the base's tensor: of those, or of all, if all were verified.
    """

    rewritten: tuple[Rewritten, ...]
    base_tensors: Mapping[str, str]


@dataclass(frozen=True)
class BakeOptions:
    """How to bake.

    Args:
        hard_link: untouched files become further names of the base's own files where the file system can.
        verify_all: read everything back from the disk and compare it, tensor by tensor, not just what was rewritten.
    """

    hard_link: bool = False
    verify_all: bool = False


@dataclass(frozen=True)
class BakeReport:
    """What a bake wrote.

    Args:
        folder: the new checkpoint.
        files: how many files are in it.
        size: bytes in all of them.
        linked: how many of the files are further names of the base's.
        rewritten: the tensors that differ from the base, in order of name.
        left_out: files of the base that hold its weights in another form, relative to it.
        verified: tensors that were read back and compared.
    """

    folder: Path
    files: int
    size: int
    linked: int
    rewritten: tuple[Rewritten, ...]
    left_out: tuple[str, ...]
    verified: int


def bake_folder(
    base_folder: Path,
    out: Path,
    edits: Sequence[Edit],
    documents: Callable[[Written], Mapping[str, str]],
    options: BakeOptions | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> BakeReport:
    """Write *out*: the checkpoint in *base_folder* with some tensors edited.

    Args:
        base_folder: a Hugging Face folder with safetensors or pickled weights, in one file or in shards.
        out: the folder to make; must not exist, and must not lie inside the base.
        edits: one for each tensor.
        documents: the text files to add or to put in the place of the base's, by name (:data:`CARD`,
            :data:`MANIFEST`), made from what was written.
        on_step: hears "copying, MB", how many megabytes are done, and of how many.

    Raises:
        OutputError: *out* exists or lies inside the base, or the disk is full.
        BaseMismatchError: a tensor's content, dtype or shape in the folder is not the one expected.
        SiteError: a parameter is not in the checkpoint.
        ModelError: the base folder is damaged or incomplete.
        ComputeError: an edited tensor does not fit its dtype.
    """
    options = options or BakeOptions()
    base_folder, out = base_folder.resolve(), Path(os.path.abspath(out))
    _refuse_bad_output(base_folder, out)
    if not base_folder.is_dir():
        raise ModelError(f"There is no checkpoint folder {base_folder} to bake from.")
    base = stored_tensors(base_folder)
    places = _places(base_folder, base, edits)
    plan = _plan(base_folder, {place.shard for place in places.values()}, options)
    try:
        with building(out) as work:
            linked = _copy(base_folder, work, plan, base, _Progress(plan.size(base_folder), on_step))
            written = stored_tensors(work)
            rewritten = tuple(
                _rewrite(work, written[places[edit.site.parameter].name], edit)
                for edit in sorted(edits, key=lambda one: one.site.parameter)
            )
            if options.verify_all:
                _from_the_disk(work)
            hashes = _read_back(base_folder, work, plan, base, written, rewritten, every=options.verify_all)
            for name, text in documents(Written(rewritten, hashes)).items():
                (work / name).write_text(text, encoding="utf-8")
            sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
    except FileExistsError as error:
        raise _exists(out) from error
    except OSError as error:
        raise _unwritable(base_folder, out, error) from error
    return BakeReport(out, len(sizes), sum(sizes), linked, rewritten, plan.left_out, len(hashes))


@dataclass(frozen=True)
class _Plan:
    """``files``: (path in the base, path in the output) to copy; ``links``: those of them to link; ``layout``: the
    base's weights, which are converted where they are pickled."""

    layout: Layout
    files: tuple[tuple[str, str], ...]
    links: frozenset[str]
    left_out: tuple[str, ...]

    def size(self, folder: Path) -> int:
        converted = self.layout.shards if self.layout.pickled else ()
        names = [source for source, _ in self.files if source not in self.links]
        return sum((folder / name).stat().st_size for name in (*names, *converted))


class _Progress:
    def __init__(self, total: int, on_step: Callable[[str, int, int], None] | None) -> None:
        self.total, self.done, self.on_step = total, 0, on_step

    def __call__(self, count: int) -> None:
        self.done += count
        if self.on_step is not None:
            self.on_step("copying, MB", min(self.done, self.total) // 1_000_000, self.total // 1_000_000)


def _refuse_bad_output(base_folder: Path, out: Path) -> None:
    if out.resolve() in base_folder.parents:
        raise OutputError(
            f"The base {base_folder} lies inside the output {out}.",
            expected="a folder that is not there yet",
            next_step="Name a new folder; a bake overwrites nothing.",
        )
    if os.path.lexists(out):
        raise _exists(out)
    if base_folder in (out.resolve(), *out.resolve().parents):
        raise OutputError(
            f"The output {out} lies inside the base {base_folder}, which is never written to.",
            next_step="Name a folder elsewhere.",
        )


def _places(folder: Path, stored: Mapping[str, StoredTensor], edits: Sequence[Edit]) -> dict[str, StoredTensor]:
    """Parameter name to its place in the checkpoint, all of them checked before anything is written."""
    places: dict[str, StoredTensor] = {}
    taken: dict[str, str] = {}
    for edit in edits:
        site = edit.site
        place = stored[match_name(site.parameter, stored)]
        if place.name in taken:
            raise OutputError(
                f"{site.parameter} and {taken[place.name]} are one tensor in the checkpoint: {place.name}."
            )
        taken[place.name] = site.parameter
        places[site.parameter] = place
        wanted = (site.d_in, site.d_out) if site.transposed else (site.d_out, site.d_in)
        if (place.dtype, place.shape) != (site.dtype, wanted):
            raise BaseMismatchError(
                f"The new {site.parameter} does not fit its place in {folder}.",
                expected=f"{site.dtype} {wanted}",
                found=f"{place.dtype} {place.shape}",
                next_step="Bake from the base in the dtype it was patched in; "
                "for another dtype load it so, and save that folder first.",
                parameter=site.parameter,
            )
        sha256 = place.sha256(folder)
        if sha256 != site.sha256:
            raise BaseMismatchError(
                f"The tensor {place.name} in {folder} is not the one that the patches were computed for.",
                expected=f"sha256 {site.sha256}",
                found=f"sha256 {sha256}",
                next_step="Bake from the patches' own base, or compute them anew on this one.",
                parameter=site.parameter,
            )
    return places


def _plan(folder: Path, touched: set[str], options: BakeOptions) -> _Plan:
    layout = find_layout(folder)
    names = list(_files(folder))
    own = frozenset() if layout.pickled else layout.files
    kept = [name for name in names if name in own or not (name in layout.files or _is_other_weights(name))]
    files = tuple((name, BASE_MANIFEST if name == MANIFEST else name) for name in kept if name != BASE_MANIFEST)
    replaced = {*touched, CARD} if options.hard_link else set(kept)
    left_out = tuple(name for name in names if name not in kept and name not in layout.files)
    return _Plan(layout, files, frozenset(name for name in kept if name not in replaced), left_out)


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


def _copy(folder: Path, work: Path, plan: _Plan, base: Mapping[str, StoredTensor], on_bytes: OnBytes) -> int:
    """Fill *work* with the unedited checkpoint; how many files were linked."""
    linked = 0
    for source, name in plan.files:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        if source in plan.links and link_file(folder / source, work / name):
            linked += 1
        else:
            copy_file(folder / source, work / name, on_bytes)
    if plan.layout.pickled:
        for shard in plan.layout.shards:
            tensors = [tensor for tensor in base.values() if tensor.shard == shard]
            pickled.write_safetensors(folder, tensors, work / pickled.renamed(shard), on_bytes)
        if plan.layout.index is not None:
            pickled.write_index(list(base.values()), work / pickled.renamed_index(plan.layout.index))
    return linked


def _rewrite(work: Path, place: StoredTensor, edit: Edit) -> Rewritten:
    """Edit one tensor in place, some rows at a time."""
    meter = RoundingMeter(edit.update, edit.probes, transposed=edit.site.transposed)
    before, after = hashlib.sha256(), hashlib.sha256()
    with (work / place.shard).open("r+b", buffering=0) as file:
        for rows in row_blocks(*place.shape):
            raw, made = _rewrite_rows(file, place, edit, rows, meter)
            before.update(raw)
            after.update(made)
    if before.hexdigest() != edit.site.sha256:
        raise OSError(errno.EIO, f"{place.name} was not copied as it is; did the base change meanwhile?")
    return Rewritten(
        parameter=edit.site.parameter,
        stored_as=place.name,
        shard=place.shard,
        dtype=place.dtype,
        shape=place.shape,
        sha256_before=edit.site.sha256,
        sha256_after=after.hexdigest(),
        rounding=meter.results(),
    )


def _rewrite_rows(
    file: BinaryIO, place: StoredTensor, edit: Edit, rows: slice, meter: RoundingMeter
) -> tuple[bytes, memoryview]:
    """Edit some rows; their bytes before and after."""
    kind = np.dtype(STORAGE[place.dtype])
    width = place.shape[1] * kind.itemsize
    file.seek(place.start + rows.start * width)
    raw = _exactly(file, (rows.stop - rows.start) * width)
    stored = np.frombuffer(raw, kind).reshape(-1, place.shape[1])
    exact = exact_rows(stored, place.dtype, edit.update, rows, transposed=edit.site.transposed)
    made = encode(exact, place.dtype)
    meter.add(rows, decode(made, place.dtype) - exact)
    file.seek(place.start + rows.start * width)
    whole = left = made.data.cast("B")
    while left:
        left = left[file.write(left) :]
    return raw, whole


def _exactly(file: BinaryIO, count: int) -> bytes:
    pieces = []
    while count and (piece := file.read(count)):
        pieces.append(piece)
        count -= len(piece)
    if count:
        raise OSError(errno.EIO, "a file that was just written is shorter than it should be")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _from_the_disk(work: Path) -> None:
    """Make the system forget what it knows of the files in *work*: what is read next comes from the disk."""
    sync_tree(work)
    if hasattr(os, "posix_fadvise"):
        for name in _files(work):
            with (work / name).open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_back(
    base_folder: Path,
    work: Path,
    plan: _Plan,
    base: Mapping[str, StoredTensor],
    written: Mapping[str, StoredTensor],
    rewritten: Sequence[Rewritten],
    *,
    every: bool,
) -> dict[str, str]:
    """Compare what was written with what should be there: rewritten tensors by hash, files by size; with *every* all
    tensors and files by hash. sha256 of the base's tensors, as far as they were compared."""
    for source, name in plan.files:
        if (base_folder / source).stat().st_size != (work / name).stat().st_size:
            raise OSError(errno.EIO, f"{name} was not copied whole; did the base change meanwhile?")
    if {name: (one.dtype, one.shape) for name, one in base.items()} != {
        name: (one.dtype, one.shape) for name, one in written.items()
    }:
        raise OSError(errno.EIO, "the new checkpoint lists other tensors than the base")
    after = {one.stored_as: one.sha256_after for one in rewritten}
    hashes = {one.stored_as: one.sha256_before for one in rewritten}
    if every:
        hashes |= {name: tensor.sha256(base_folder) for name, tensor in base.items() if name not in hashes}
        _compare_files(base_folder, work, plan)
    for name, sha256 in hashes.items():
        if written[name].sha256(work) != after.get(name, sha256):
            raise OSError(errno.EIO, f"{name} reads back otherwise than it was written")
    return hashes


def _compare_files(base_folder: Path, work: Path, plan: _Plan) -> None:
    """Every file that holds no weights."""
    for source, name in plan.files:
        if source in plan.layout.shards:
            continue
        with (base_folder / source).open("rb") as one, (work / name).open("rb") as other:
            while piece := one.read(1 << 22):
                if piece != other.read(1 << 22):
                    raise OSError(errno.EIO, f"{name} reads back otherwise than it was written")


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
