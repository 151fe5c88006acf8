"""Which versions of which libraries a result was computed with (rank 1; asks package metadata, imports nothing)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from rompatch import __version__

_RECORDED = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


def library_versions() -> dict[str, str]:
    """Name to version, for rompatch and the libraries that the numbers depend on."""
    found = {"rompatch": __version__}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
