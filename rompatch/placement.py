"""Where a model's weights shall go, checked before anything is loaded: one device, or spread over all there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import get_max_memory  # type: ignore[import-untyped]

from rompatch.errors import ModelError

AUTO = "auto"
"""Over the accelerators, then the processor's memory, then the disk, as far as each one reaches."""

Limits = str | Mapping[str | int, str | int] | None
"""Memory for each device: "cpu=2GiB,0=10GiB", or a mapping of device to size in bytes or as text."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)?", re.IGNORECASE)
_LIMIT_EXAMPLE = "cpu=2GiB,0=10GiB"


@dataclass(frozen=True)
class Placement:
    """Where the weights go.

    Args:
        device: one device for all of them; None spreads them.
        max_memory: bytes for each device that is limited, accelerators by their index.
        offload_folder: where weights that stay on disk are written, if they cannot be read from the checkpoint.
    """

    device: torch.device | None
    max_memory: Mapping[str | int, int] = field(default_factory=dict)
    offload_folder: Path | None = None


def placement(device: str = "cpu", max_memory: Limits = None, offload_folder: str | Path | None = None) -> Placement:
    """What the user said, checked. Loads nothing.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps" or "auto".
        max_memory: limits for "auto"; a device that is not named may fill up.
        offload_folder: for "auto".

    Raises:
        ModelError: no such device here, or a limit that is none.
    """
    folder = None if offload_folder is None else _folder(Path(offload_folder).expanduser())
    limits = _limits(max_memory)
    if device == AUTO:
        return Placement(None, limits, folder)
    if limits or folder is not None:
        raise ModelError(
            f"A memory limit or an offload folder has no meaning on the device {device!r}.",
            expected=f"the device {AUTO!r} beside it",
            found=device,
            next_step="Add --device auto.",
        )
    return Placement(_device(device))


def devices() -> list[str]:
    """The devices that a model can be put on here: "cpu", "cuda:0", "cuda:1"; "mps:0"."""
    kind, count = _accelerators()
    return ["cpu", *(f"{kind}:{index}" for index in range(count))]


def _accelerators() -> tuple[str, int]:
    """What kind of accelerator there is ("cuda", "mps", "xpu"; "" where there is none), and how many."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("", 0) if found is None else (found.type, torch.accelerator.device_count())


def _device(text: str) -> torch.device:
    """The device *text*, if it is here."""
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise _no_device(text, "no such kind of device") from error
    if device.type == "meta":
        raise _no_device(text, "a device that holds no numbers")
    kind, count = _accelerators()
    if device.type not in ("cpu", kind):
        raise _no_device(text, f"no {device.type} device, or a PyTorch that was built without {device.type}")
    here = count if device.type == kind else 1
    if (device.index or 0) >= here:
        raise _no_device(text, f"{here} of that kind, counted from 0")
    return device


def _no_device(text: str, found: str) -> ModelError:
    return ModelError(
        f"The model cannot be put on the device {text!r}.",
        expected=", ".join([*devices(), AUTO]),
        found=found,
        next_step="Leave --device out to use the processor.",
    )


def _limits(given: Limits) -> dict[str | int, int]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(device), str(size)) for device, size in given.items()]
    else:
        pairs = [(device, size) for device, _, size in (part.partition("=") for part in given.split(",") if part)]
    return {_limited_device(device.strip()): _bytes(device, size.strip()) for device, size in pairs}


def _limited_device(text: str) -> str | int:
    """accelerate's name of a device: "cpu", "mps", else the accelerator's index."""
    kind, count = _accelerators()
    index = text.removeprefix(f"{kind}:")
    if index.isdecimal() and int(index) < count:
        return "mps" if kind == "mps" else int(index)
    if text in ("cpu", kind) and text in ("cpu", "mps"):
        return text
    found = "the disk takes what is left, it has no limit" if text == "disk" else "no such device here"
    raise ModelError(
        f"A memory limit names the device {text!r}.", expected=", ".join(devices()), found=found, next_step=_hint()
    )


def _bytes(device: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise ModelError(
            f"The memory limit of {device!r} is no size.",
            expected="a number with a unit, for instance 10GiB or 500MB",
            found=repr(text),
            next_step=_hint(),
        )
    return int(float(match[1]) * _UNITS[(match[2] or "b").lower()])


def _hint() -> str:
    return f"Write --max-memory {_LIMIT_EXAMPLE}."


def _folder(path: Path) -> Path:
    if path.exists() and not path.is_dir():
        raise ModelError(f"The offload folder {path} is not a folder.", next_step="Name another one.")
    return path.absolute()


def load_options(where: Placement) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` is told. A single device is none of its business: the weights are mapped
    from their file first, without a copy, and moved afterwards."""
    if where.device is not None:
        return {}
    if not where.max_memory:
        return {"device_map": AUTO}
    # accelerate leaves a device that is not named unused.
    return {"device_map": AUTO, "max_memory": {**get_max_memory(), **where.max_memory}}
