"""The fingerprint of a tokenizer, from its serialised pipeline; and the quick way to it, without transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rompatch.patch import canonical_json

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")


def pipeline_hash(backend: str, special: Mapping[str, Any]) -> str:
    """sha256 over a backend's JSON, padding and truncation left out, and the ids of the special tokens."""
    pipeline = {key: value for key, value in json.loads(backend).items() if key not in ("padding", "truncation")}
    return value_hash(pipeline, special)


def value_hash(pipeline: Any, special: Mapping[str, Any]) -> str:
    """sha256 over *pipeline* and *special* as canonical JSON."""
    return hashlib.sha256(canonical_json({"pipeline": pipeline, "special": dict(special)}).encode()).hexdigest()


def quick_hash(folder: Path) -> str | None:
    """The fingerprint as far as ``tokenizer.json`` and ``tokenizer_config.json`` alone give it; None if they do not.

    Some classes of transformers build their pipeline otherwise, and then this is another hash: one that equals what is
    expected settles the matter, one that differs settles nothing.
    """
    from tokenizers import Tokenizer

    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = {name: _content(config.get(name)) for name in _SPECIAL}
        special = {name: tokenizer.token_to_id(token) for name, token in tokens.items() if token is not None}
    except Exception:  # noqa: BLE001 - tokenizers raises plain Exception; the slow way says what is wrong
        return None
    return pipeline_hash(tokenizer.to_str(), special)


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
