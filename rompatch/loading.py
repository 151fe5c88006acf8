"""A checkpoint folder becomes a live model with its tokenizer, wherever its weights shall go.

On the processor and in the checkpoint's own dtype nothing is copied: transformers makes the model empty and puts
views of the mapped safetensors file into it, private ones, so that the file is never written to. Pages are read when
they are used, and the system may drop them again.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rompatch.errors import ModelError
from rompatch.offload import check_weights
from rompatch.placement import Placement, load_options
from rompatch.quiet import quiet_transformers
from rompatch.sites import dtype_name

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""The dtypes a base may be loaded in."""


def check_dtype(dtype: str | None) -> None:
    """Raises ModelError for a *dtype* that no base can be loaded in."""
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"A base cannot be loaded as {dtype!r}.", expected=", ".join(DTYPES), found=dtype)


def load_folder(folder: Path, dtype: str | None, where: Placement) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer in *folder*, in evaluation mode and without gradients.

    Raises:
        ModelError: the checkpoint is damaged, incomplete or quantised, or does not fit where it shall go.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"The folder {folder} holds no model.",
            expected="a Hugging Face checkpoint with config.json",
            found=", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "an empty folder",
        )
    with quiet_transformers():
        model, info = _load_model(folder, dtype, where)
        tokenizer = _guarded(AutoTokenizer.from_pretrained, folder, what="tokenizer")
    _check_whole(folder, model, info)
    placed = model if where.device is None else _moved(model, where.device)
    placed.train(False)
    placed.requires_grad_(False)
    return placed, tokenizer


def _load_model(folder: Path, dtype: str | None, where: Placement) -> tuple[PreTrainedModel, dict[str, Any]]:
    options = load_options(where)
    work = _offload_work(folder, where.offload_folder)
    try:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = _guarded(
            AutoModelForCausalLM.from_pretrained,
            folder,
            what="model",
            dtype=DTYPES[dtype] if dtype is not None else "auto",
            output_loading_info=True,
            **options,
            **({} if work is None else {"offload_folder": str(work)}),
        )
    except BaseException:
        _remove(work)
        raise
    if work is not None:
        weakref.finalize(loaded[0], _remove, work)
    return loaded


def _offload_work(folder: Path, wanted: Path | None) -> Path | None:
    """A new folder in the one that the user named: two models in one folder would overwrite each other's weights."""
    if wanted is None:
        return None
    if folder.resolve() in (wanted.resolve(), *wanted.resolve().parents):
        raise ModelError(
            f"The offload folder {wanted} is inside the model's own folder.",
            expected="a folder elsewhere: nothing is ever written beside a base",
            next_step="Name another one with --offload-folder.",
        )
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="rompatch-", dir=wanted))
    except OSError as error:
        raise ModelError(
            f"The offload folder {wanted} cannot be written to.", found=str(error), next_step="Name another one."
        ) from error


def _remove(work: Path | None) -> None:
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)


def _guarded(load: Any, folder: Path, *, what: str, **options: Any) -> Any:
    """Call one of transformers' loaders; its many ways to fail become one error that names the folder."""
    try:
        return load(folder, local_files_only=True, trust_remote_code=False, **options)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        wants_folder = "offload_folder" in str(error)  # only weights that are not safetensors are written there
        raise ModelError(
            f"The {what} in {folder} cannot be loaded.",
            expected="a complete causal language model with its tokenizer",
            found=" ".join(str(error).split())[:300].rstrip(".") or type(error).__name__,
            next_step="Name a folder for the weights that stay on disk: --offload-folder DIR."
            if wants_folder
            else "Fetch or save the checkpoint again; nothing was changed in it.",
        ) from error


def _check_whole(folder: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    missing = sorted(str(name) for name in info.get("missing_keys", ()))
    if missing:  # transformers only warns and puts random numbers there
        raise ModelError(
            f"The checkpoint {folder} lacks weights that its configuration asks for.",
            found=f"{len(missing)} missing, {', '.join(missing[:3])} among them",
            next_step="Fetch or save it again.",
        )
    if dtype_name(model.dtype) not in DTYPES or getattr(model, "quantization_method", None) is not None:
        raise ModelError(
            f"The checkpoint {folder} is quantised; a patch is computed on plain weights.",
            expected=", ".join(DTYPES),
            found=dtype_name(model.dtype),
            next_step="Use the unquantised checkpoint, or --dtype float32 if it holds plain numbers.",
        )
    check_weights(model)


def _moved(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    try:
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"The model cannot be put on the device {str(device)!r}.",
            found=str(error).split("\n", 1)[0][:200],
            next_step="Spread it with --device auto, or leave --device out to use the processor.",
        ) from error
    return moved
