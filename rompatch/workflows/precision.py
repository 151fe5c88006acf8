"""--precision auto: the faster of float32 and bfloat16 on this machine, measured once and remembered.

Remembered, since a patch records its precision and so its id depends on it: a measurement that came out otherwise on a
busy day would give the same request another id.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

from rompatch.default_model import cache_root
from rompatch.patchfile.durable import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from rompatch.models import Base
    from rompatch.reporting import Reporter
    from rompatch.sites import Site

AUTOMATIC = "auto"


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
    known, name = _remembered(), _hardware(device)
    if name not in known:
        seconds = measure_products(device, (site.d_in, site.d_out), ("float32", "bfloat16"))
        known[name] = fastest(seconds)
        ratio = seconds["float32"] / seconds["bfloat16"]
        reporter.note(f"products in bfloat16 are {ratio:.1f} times as fast as in float32 here: using {known[name]}")
        _path().parent.mkdir(parents=True, exist_ok=True)
        atomic_write(_path(), json.dumps(known, indent=1, sort_keys=True).encode())
    return known[name]


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


def _hardware(device: torch.device) -> str:
    """The device by its make and the version of torch: what the speed of a product depends on."""
    import torch

    if device.type == "cuda":
        make = torch.cuda.get_device_name(device)
    else:
        make = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {make} torch {torch.__version__}"
