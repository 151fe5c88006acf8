"""Bake: a checkpoint folder in, a checkpoint folder out, the model never loaded, nor torch where there is no pickle.

Every file is copied byte for byte (sharing the disk blocks where the file system can), then the bytes of the edited
tensors alone are written over, some rows at a time, at their own offsets in the copy. So configuration, tokenizer,
shards, metadata and every other tensor are the base's own, and neither a model nor a tensor larger than the memory is
any trouble. The folder appears whole or not at all (:mod:`rompatch.folders`), and the base is only ever opened for
reading.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rompatch.apply.bake_check import from_the_disk, read_back
from rompatch.apply.bake_plan import files_in, make_plan, places_of
from rompatch.apply.bake_writing import copy_base, rewrite
from rompatch.apply.baked import BakeOptions, BakeReport, Edit, Written
from rompatch.apply.checkpoint import stored_tensors
from rompatch.errors import ModelError, OutputError
from rompatch.folders import building


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
            :data:`MANIFEST` of :mod:`rompatch.apply.baked`), made from what was written.
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
        raise ModelError(
            f"There is no checkpoint folder {base_folder} to bake from.",
            next_step="Put it back, or name the base where it is now: `rompatch bake OUT --model FOLDER`.",
        )
    base = stored_tensors(base_folder)
    places = places_of(base_folder, base, edits)
    plan = make_plan(base_folder, {place.shard for place in places.values()}, options)
    try:
        with building(out) as work:
            linked = copy_base(base_folder, work, plan, base, _Progress(plan.size(base_folder), on_step))
            written = stored_tensors(work)
            rewritten = tuple(
                rewrite(work, written[places[edit.site.parameter].name], edit)
                for edit in sorted(edits, key=lambda one: one.site.parameter)
            )
            if options.verify_all:
                from_the_disk(work)
            hashes = read_back(base_folder, work, plan, base, written, rewritten, every=options.verify_all)
            for name, text in documents(Written(rewritten, hashes)).items():
                (work / name).write_text(text, encoding="utf-8")
            sizes = [path.stat().st_size for path in work.rglob("*") if path.is_file()]
    except FileExistsError as error:
        raise _exists(out) from error
    except OSError as error:
        raise _unwritable(base_folder, out, error) from error
    return BakeReport(out, len(sizes), sum(sizes), linked, rewritten, plan.left_out, len(hashes))


class _Progress:
    """Hears how many bytes more were copied, and tells how many megabytes are done, and of how many."""

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


def _exists(out: Path) -> OutputError:
    return OutputError(
        f"{out} exists already.",
        expected="a folder that is not there yet",
        next_step="Name another one, or remove it first; a bake overwrites nothing.",
    )


def _unwritable(base_folder: Path, out: Path, error: OSError) -> OutputError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    needed = sum((base_folder / name).stat().st_size for name in files_in(base_folder)) // 1_000_000 + 1
    return OutputError(
        f"The checkpoint {out} could not be written, and nothing of it was left there.",
        expected=f"about {needed} MB of space" if full else "a place that can be written to",
        found=error.strerror or str(error),
        next_step="Make room, or name a folder on another disk." if full else "Check the path and its permissions.",
    )
