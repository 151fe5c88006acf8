"""A PEFT LoRA adapter as a patch of format 2: for each module left = scale B and right = A.

PEFT computes ``W x + scale B (A x)``, with A (r, d_in) and B (d_out, r) whichever way the module stores W.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rompatch.adapters.config import LoraConfig, read_config, refused
from rompatch.errors import AdapterError, ArchitectureError, RequestError, SiteError
from rompatch.models import Base
from rompatch.patch import ADAPTER_VERSION, LowRankFactors, Patch, PatchHeader
from rompatch.patchfile.checks import MAX_FILE_BYTES, MAX_SITES
from rompatch.sites import Site, site_named

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
METHOD = "lora"
MAX_RANK = 64
"""What counts as low: a patch is to be small beside the weights it changes."""

_KEY = re.compile(r"base_model\.model\.(?P<module>[\w.-]+)\.lora_(?P<part>[AB])(?:\.default)?\.weight", re.ASCII)
_DTYPES = ("F32", "F16", "BF16")
_LONGEST_TITLE = 200


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read and fits the base.

    Args:
        patch: it, as a patch.
        ranks: parameter name to rank.
        base_name: what the adapter calls its base; a name is no evidence.
    """

    patch: Patch
    ranks: Mapping[str, int]
    base_name: str | None


def read_adapter(folder: Path, base: Base, title: str, *, max_rank: int = MAX_RANK) -> Adapter:
    """The LoRA in *folder* as a patch of *base*, called *title*.

    Raises:
        AdapterError: it is damaged, no plain LoRA, of too high a rank, or does not fit the base.
        RequestError: the title is empty or too long.
    """
    if not title.strip() or len(title) > _LONGEST_TITLE or not title.isprintable():
        raise RequestError(
            "An adapter needs a name to be found by.", expected=f"1 to {_LONGEST_TITLE} printable characters"
        )
    config = read_config(folder)
    path = _weights(folder)
    try:
        with safe_open(path, framework="pt") as handle:
            shapes = {name: _shape(folder, handle, name) for name in handle.keys()}  # noqa: SIM118 - it is no mapping
            modules = _modules(folder, shapes)
            sites = {name: _site(folder, base, name) for name in modules}
            for name in modules:
                _check(folder, config, sites[name], shapes, modules[name], max_rank)
            factors = {name: _factors(folder, config, handle, name, keys) for name, keys in modules.items()}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.", next_step="Get the adapter again.") from error
    header = PatchHeader(
        method=METHOD,
        hparams={
            **{name: getattr(config, name) for name in ("r", "lora_alpha", "use_rslora")},
            "adapter_sha256": _file_sha256(path),
        },
        request=None,
        title=title,
        base=base.ref(),
        sites=tuple(site.ref() for site in sites.values()),
        contexts=(),
        seed=0,
        document_start=True,  # as rompatch scores everything that does not say otherwise
        statistics=None,
        format_version=ADAPTER_VERSION,
    )
    patch = Patch(header, tuple(factors.values()))
    return Adapter(patch, {site.parameter_name: config.rank(name) for name, site in sites.items()}, config.base_name)


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLED).exists()
        raise AdapterError(
            f"The adapter in {folder} has no {WEIGHTS}.",
            found=f"{PICKLED}, a pickle, which may run any code when it is read" if pickled else None,
            next_step="Load it with PEFT where you trust it, and save it again as safetensors.",
        )
    return path


def _shape(folder: Path, handle: Any, name: str) -> tuple[int, ...]:
    piece = handle.get_slice(name)
    if piece.get_dtype() not in _DTYPES:
        found = piece.get_dtype()
        raise refused(folder, f"its tensor {name[:200]} is no float matrix", found, "Save it as float32.")
    return tuple(piece.get_shape())


def _modules(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, str]]:
    """Module name to the keys of its A and its B, in order of name; nothing else may be there."""
    found: dict[str, dict[str, str]] = {}
    for key in sorted(shapes):
        match = _KEY.fullmatch(key)
        if match is None:
            what = "embeddings" if "embedding" in key else "more than A and B of modules"
            raise refused(folder, f"it holds {what}", key[:200])
        if match["part"] in found.setdefault(match["module"], {}):
            raise refused(folder, f"it holds two tensors {match['part']} of one module", key[:200])
        found[match["module"]][match["part"]] = key
    alone = [module for module, keys in found.items() if len(keys) != 2]
    if alone:
        raise refused(folder, "a module has only one of A and B", alone[0][:200])
    if not 1 <= len(found) <= MAX_SITES:
        raise refused(folder, f"it changes {len(found)} modules", f"a patch holds 1 to {MAX_SITES}")
    if sum(4 * rows * columns for rows, columns in _matrices(folder, shapes)) > MAX_FILE_BYTES // 2:
        raise refused(folder, "it is too large for a patch", f"more than {MAX_FILE_BYTES // 2} bytes as float32")
    return found


def _matrices(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    flat = [key for key, shape in shapes.items() if len(shape) != 2]
    if flat:
        raise refused(folder, f"its tensor {flat[0][:200]} is no matrix", shapes[flat[0]])
    return [(shape[0], shape[1]) for shape in shapes.values()]


def _site(folder: Path, base: Base, name: str) -> Site:
    """The module of that name in the base, if it is one that can be edited."""
    try:
        site = site_named(base.model, name)
    except (SiteError, ArchitectureError) as error:
        raise AdapterError(
            f"The adapter in {folder} does not fit {base.source}: {error.message}",
            expected=error.expected,
            found=error.found,
            next_step="Name the base that it was trained on: --model.",
        ) from error
    if site.weight is getattr(base.model.get_input_embeddings(), "weight", None):
        raise refused(folder, f"{name} shares its weight with the embeddings, which would change with it")
    return site


def _check(
    folder: Path,
    config: LoraConfig,
    site: Site,
    shapes: Mapping[str, tuple[int, ...]],
    keys: Mapping[str, str],
    max_rank: int,
) -> None:
    rank = config.rank(site.module_name)
    expected, found = ((rank, site.d_in), (site.d_out, rank)), (shapes[keys["A"]], shapes[keys["B"]])
    if found != expected:
        raise AdapterError(
            f"The adapter in {folder} does not fit {site.parameter_name} of the base.",
            expected=f"A {expected[0]} and B {expected[1]}",
            found=f"A {found[0]} and B {found[1]}",
            next_step="Name the base that it was trained on: --model.",
            parameter=site.parameter_name,
        )
    if rank > max_rank:
        raise AdapterError(
            f"The adapter in {folder} is of rank {rank} at {site.parameter_name}: too high for a patch.",
            expected=f"at most {max_rank}",
            next_step=f"Allow it with --max-rank {rank} if the file may be so large.",
            rank=rank,
        )


def _factors(folder: Path, config: LoraConfig, handle: Any, module: str, keys: Mapping[str, str]) -> LowRankFactors:
    right = handle.get_tensor(keys["A"]).to(torch.float32)
    left = (config.scale(module) * handle.get_tensor(keys["B"]).to(torch.float64)).to(torch.float32)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise refused(folder, f"its tensors for {module} contain NaN or infinity", next_step="Train it again.")
    return LowRankFactors(left=left.numpy(), right=right.numpy())


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
