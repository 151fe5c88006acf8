"""Which base a store's next patches are made for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.default_model import ALIASES, NOT_ASKED, is_hub_id, unknown_model
from rompatch.errors import ModelError
from rompatch.workflows.opened import BASE_SETTING, BaseSpec, OpenStore


@dataclass(frozen=True)
class BaseChange:
    """The store's base before and after; ``before`` None: none had been chosen."""

    before: BaseSpec | None
    after: BaseSpec

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {"before": None if self.before is None else vars(self.before), "after": vars(self.after)}


def use_base(store: OpenStore, model: str, dtype: str | None = None, module: str | None = None) -> BaseChange:
    """Make *model* the base of future patches. Writes one setting; existing patches keep their own base.

    The model is not loaded: a folder must hold a config.json, a hub id is believed.

    Raises:
        UnknownModelError: neither a path, an alias nor spelled like a hub id.
        ModelError: a folder without a model.
    """
    saved = store.ledger.setting(BASE_SETTING)
    spec = store.base_spec(model, dtype, module) if model.strip() else BaseSpec("")
    _check(spec.model)
    store.ledger.set_setting(BASE_SETTING, vars(spec))
    return BaseChange(None if saved is None else BaseSpec(**saved), spec)


def _check(model: str) -> None:
    path = Path(model)
    if model and path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"The folder {path} holds no model.", expected="a Hugging Face checkpoint with config.json")
    if (model and path.exists()) or model in ALIASES or is_hub_id(model):
        return
    raise unknown_model(model, NOT_ASKED)
