"""--precision auto: the faster of float32 and bfloat16 on this machine, measured once and remembered.

Remembered, since a patch records its precision and so its id depends on it: a measurement that came out otherwise on a
busy day would give the same request another id.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

from rompatch.default_model import cache_root
from rompatch.errors import OutputError
from rompatch.patchfile.durable import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from rompatch.models import Base
    from rompatch.reporting import Reporter
    from rompatch.sites import Site

AUTOMATIC = "auto"


def wanted_precision(option: str, hparams: Mapping[str, Any]) -> str:
    """What was asked for: by the option, else by a preset or by *hparams*, else "auto"."""
    return option if option != AUTOMATIC else hparams.get("precision") or AUTOMATIC


def resolve_precision(base: Base, site: Site, wanted: str, reporter: Reporter) -> str:
    """The precision that *wanted* means for *base*.

    Args:
        wanted: "auto", or a precision. "auto" is the base's own dtype in half precision and where weights are
            offloaded, else the faster one.

    Raises:
        RequestError: the base or its device cannot multiply in that precision.
    """
    from rompatch.compute.precision import check_precision, fastest, measure_products
    from rompatch.offload import is_offloaded

    if wanted != AUTOMATIC:
        check_precision(base, wanted)
        return wanted
    if base.dtype != "float32" or is_offloaded(base.model):
        return base.dtype
    device = base.model.get_output_embeddings().weight.device
    shape = (site.d_in, site.d_out)
    known, name = _remembered(), _hardware(device, shape)
    if name not in known:
        try:
            seconds = measure_products(device, shape, ("float32", "bfloat16"))
        except (RuntimeError, TypeError):  # a device without bfloat16
            return "float32"
        known[name] = fastest(seconds)
        ratio = seconds["float32"] / seconds["bfloat16"]
        reporter.note(f"products in bfloat16 are {ratio:.1f} times as fast as in float32 here: using {known[name]}")
        _remember(known, reporter)
    return known[name]


def _remember(known: dict[str, str], reporter: Reporter) -> None:
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(_path(), json.dumps(known, indent=1, sort_keys=True).encode())
    except (OSError, OutputError) as problem:
        reporter.note(f"the choice of the precision cannot be remembered ({problem}); --precision says it for good")


def _path() -> Path:
    return cache_root() / "precision.json"


def _remembered() -> dict[str, str]:
    """What was measured before; nothing where the file is missing or damaged."""
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(name): value for name, value in found.items() if value in ("float32", "bfloat16")}


def _hardware(device: torch.device, shape: tuple[int, int]) -> str:
    """What the speed of a product depends on: the device by its make, its threads, the version of torch, the shape."""
    import torch

    if device.type == "cuda":
        make = torch.cuda.get_device_name(device)
    else:
        make = f"{_processor()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    return f"{device.type} {make} torch {torch.__version__} {shape[0]}x{shape[1]}"


def _processor() -> str:
    """The processor's model and abilities, as far as the system tells: its name alone does not say whether it
    multiplies bfloat16 in hardware."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    half = sorted({"amx_bf16", "avx512_bf16", "bf16"} & set(f"{facts.get('flags')} {facts.get('Features')}".split()))
    return " ".join([facts.get("model name", platform.machine()), *half])
