"""rompatch: facts in a language model, maintained like code.

>>> import rompatch
>>> with rompatch.open_store() as store:  # doctest: +SKIP
...     created = store.create("Eiffel Tower", "located in", "Rome", apply=True)
...     with store.session() as model:
...         ...
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "open_store": "rompatch.workflows.store",
    "Store": "rompatch.workflows.store",
    "BaseSpec": "rompatch.workflows.store",
    "EditRequest": "rompatch.edits",
    "Patch": "rompatch.patch",
    "PatchedModel": "rompatch.apply.session",
    "Base": "rompatch.models",
    "load_base": "rompatch.models",
    "wrap": "rompatch.models",
    "read_patch": "rompatch.patchfile",
    "write_patch": "rompatch.patchfile",
    "RompatchError": "rompatch.errors",
    "Reporter": "rompatch.reporting",
}
"""Public name to its module: loaded on first use, so that ``import rompatch`` stays light."""

_RENAMED = {"read_patch": "read", "write_patch": "write"}

__all__ = ["__version__", *sorted(_LAZY)]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'rompatch' has no attribute {name!r}")
    return getattr(import_module(module), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
