"""The quick fingerprint of a tokenizer is the full one, or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import tiny_tokenizer
from pico import toy_tokenizer

from rompatch.fingerprints import tokenizer_hash
from rompatch.tokenizer_hash import quick_hash


def test_the_quick_way_gives_the_full_fingerprint(tmp_path: Path) -> None:
    for number, tokenizer in enumerate((toy_tokenizer(), tiny_tokenizer())):
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        assert quick_hash(folder) == tokenizer_hash(tokenizer)


def test_another_special_token_or_vocabulary_is_another_fingerprint(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    before = quick_hash(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "</s>"}))
    assert quick_hash(tmp_path) not in (None, before)
    tiny_tokenizer(["<s>", "</s>", "<unk>", "other"]).save_pretrained(tmp_path)
    assert quick_hash(tmp_path) != before


@pytest.mark.parametrize("damage", ["tokenizer.json", "tokenizer_config.json"])
def test_what_cannot_be_read_quickly_settles_nothing(tmp_path: Path, damage: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / damage).write_text("{")
    assert quick_hash(tmp_path) is None
    (tmp_path / damage).unlink()
    assert quick_hash(tmp_path) is None
