"""Before a bake writes anything: where every edited tensor is, and which of the base's files go where."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rompatch.apply.baked import BASE_MANIFEST, CARD, MANIFEST, BakeOptions, Edit
from rompatch.apply.checkpoint import Layout, find_layout, match_name
from rompatch.apply.stored import StoredTensor
from rompatch.errors import BaseMismatchError, OutputError
from rompatch.patch import SiteRef

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".safetensors")
"""Further forms of the same weights: carried over, they would still be the unedited model. The checkpoint's own
safetensors files are not among them."""

SKIPPED_FOLDERS = frozenset({".git", ".cache", "__pycache__"})


@dataclass(frozen=True)
class Plan:
    """Which files of the base become which of the output.

    Args:
        layout: the base's weights, which are converted where they are pickled.
        files: (path in the base, path in the output) of those to copy or link, relative to the two folders.
        links: those of them, by path in the base, that may be linked.
        left_out: other forms of the base's weights, which are not taken along.
    """

    layout: Layout
    files: tuple[tuple[str, str], ...]
    links: frozenset[str]
    left_out: tuple[str, ...]

    def size(self, folder: Path) -> int:
        """How many bytes of the base in *folder* are to be copied or converted."""
        converted = self.layout.shards if self.layout.pickled else ()
        names = [source for source, _ in self.files if source not in self.links]
        return sum((folder / name).stat().st_size for name in (*names, *converted))


def places_of(folder: Path, stored: Mapping[str, StoredTensor], edits: Sequence[Edit]) -> dict[str, StoredTensor]:
    """Parameter name to its place in the checkpoint in *folder*, all of them checked before anything is written.

    Raises:
        SiteError: a parameter is not in the checkpoint.
        OutputError: two parameters are one tensor there.
        BaseMismatchError: a tensor's content, dtype or shape is not the one expected.
    """
    places: dict[str, StoredTensor] = {}
    taken: dict[str, str] = {}
    for edit in edits:
        parameter = edit.site.parameter
        place = stored[match_name(parameter, stored)]
        if place.name in taken:
            raise OutputError(
                f"{parameter} and {taken[place.name]} are one tensor in the checkpoint: {place.name}.",
                next_step="Bake a stack that edits one of the two.",
            )
        taken[place.name] = parameter
        places[parameter] = place
        _check_place(folder, place, edit.site)
    return places


def _check_place(folder: Path, place: StoredTensor, site: SiteRef) -> None:
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


def make_plan(folder: Path, touched: set[str], options: BakeOptions) -> Plan:
    """How to copy the checkpoint in *folder*, whose files *touched* (by path) are going to be written into.

    Raises:
        ModelError: there is no checkpoint in it, or it names files outside the folder.
    """
    layout = find_layout(folder)
    names = list(files_in(folder))
    own = frozenset() if layout.pickled else layout.files
    kept = [name for name in names if name in own or not (name in layout.files or _is_other_weights(name))]
    files = tuple((name, BASE_MANIFEST if name == MANIFEST else name) for name in kept if name != BASE_MANIFEST)
    replaced = {*touched, CARD} if options.hard_link else set(kept)
    left_out = tuple(name for name in names if name not in kept and name not in layout.files)
    return Plan(layout, files, frozenset(name for name in kept if name not in replaced), left_out)


def files_in(folder: Path) -> Iterator[str]:
    """The paths of the files below *folder*, relative to it, in order; caches and version control are passed over."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file():  # a link to one too: the hub's cache consists of links
                yield path.relative_to(folder).as_posix()


def _is_other_weights(name: str) -> bool:
    file = name.rsplit("/", 1)[-1].removesuffix(".index.json")
    return file.endswith(OTHER_WEIGHTS) and not file.startswith("tokenizer")
