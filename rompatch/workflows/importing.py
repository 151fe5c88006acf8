"""Adapters that other programs trained, into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rompatch.errors import RequestError
from rompatch.store.records import PatchRecord
from rompatch.workflows.keeping import keep
from rompatch.workflows.opened import BaseSpec, OpenStore


@dataclass(frozen=True)
class Imported:
    """An adapter that is a patch of the store now.

    Args:
        record: the patch.
        is_new: False where the store had it already.
        ranks: parameter name to rank.
        base_name: what the adapter calls its base; a name is no evidence.
    """

    record: PatchRecord
    is_new: bool
    ranks: Mapping[str, int]
    base_name: str | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object (documented in docs/json.md)."""
        return {
            "id": self.record.id,
            "is_new": self.is_new,
            "title": self.record.subject,
            "base": self.record.header.base.source,
            "adapter_base": self.base_name,
            "sites": [{"parameter": parameter, "rank": rank} for parameter, rank in self.ranks.items()],
            "file_size": self.record.file_size,
        }


def import_peft(
    store: OpenStore,
    folder: Path,
    *,
    name: str | None = None,
    spec: BaseSpec | None = None,
    device: str = "cpu",
    max_rank: int | None = None,
    message: str | None = None,
) -> Imported:
    """Bring the PEFT LoRA adapter in *folder* into the store as a patch without keys. Writes.

    It is stacked by plain addition, and verified with a suite of the user's own.

    Args:
        name: what the patch is called and found by; None takes the folder's name.
        spec: the base that it is for; None takes the store's.
        max_rank: the highest rank that is accepted; None takes the default.

    Raises:
        AdapterError: it is damaged, no plain LoRA, of too high a rank, or does not fit the base.
        RequestError: the name is empty or too long, or *max_rank* is not positive.
        ModelError: the base cannot be loaded.
        StoreError, OutputError, PatchFileError: it could not be saved.
    """
    from rompatch.adapters.config import read_config
    from rompatch.adapters.peft_lora import MAX_RANK, read_adapter
    from rompatch.workflows.computing import Computed

    most = MAX_RANK if max_rank is None else max_rank
    if most < 1:
        raise RequestError("The highest rank must be positive.", found=most)
    read_config(folder)  # refused before the model is loaded
    spec = spec or store.base_spec()
    base = store.base(spec, device=device)
    adapter = read_adapter(folder, base, folder.resolve().name if name is None else name, max_rank=most)
    known = store.ledger.knows(adapter.patch.id)
    record = keep(store, Computed(adapter.patch, {}), spec, message=message)
    if adapter.base_name is not None and Path(adapter.base_name).name != Path(base.source).name:
        store.reporter.note(
            f"the adapter names its base {adapter.base_name!r}, this one is {base.source}: a name is no evidence, the "
            "shapes fit; verify it"
        )
    return Imported(record, not known, adapter.ranks, adapter.base_name)
