"""The bytes and ids of fixed patches are pinned: a change here breaks every file and id in the world."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from tiny_patches import tiny_adapter, tiny_patch, tiny_solved

from rompatch import patchfile
from rompatch.patch import Patch, canonical_json

GOLDEN = Path(__file__).with_name("two_sites.safetensors")
GOLDEN_ID = "ac48825e4eb0de719db4c527ea7a38248c3dacd95411431be2ca00cad715cd2a"
GOLDEN_SHA256 = "a998ae16052a647e1f101bbaab25a39a25a1d9a65d49b05de5860b74d2cd9b5d"
ADAPTER_ID = "b0cc86a545519e348f00812a9e865a33f3f650bddaf8ae63b7be75326909eb4d"
ADAPTER_SHA256 = "e0a48210a1e82a9a00c2aebbe5cf71bfb6c207e181b105ecc92245cb49f618f8"
SOLVED_ID = "0cd0d26beca8357bf9dbf24ce16cfc26ca794c4ba8b019503e684d17e76cdcf0"
SOLVED_SHA256 = "2d9921a4127eee3eb05097a13241be8a858fa760fa5f0b55ad66871333051e22"
PAGE = Path(__file__).parents[2] / "docs" / "format.md"


def block(kind: str) -> str:
    found = re.search(
        rf"^```{re.escape(kind)}\n(.*?)\n```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found, f"docs/format.md has no block {kind!r}"
    return found[1]


def test_a_fixed_patch_has_the_pinned_bytes_and_id() -> None:
    patch = tiny_patch("Tour Eiffel", layers=(1, 10), n_keys=2)
    data = patchfile.to_bytes(patch)
    assert patch.id == GOLDEN_ID
    assert hashlib.sha256(data).hexdigest() == GOLDEN_SHA256


@pytest.mark.parametrize(
    ("patch", "pinned_id", "sha256"),
    [(tiny_adapter(layers=(1, 10)), ADAPTER_ID, ADAPTER_SHA256), (tiny_solved(), SOLVED_ID, SOLVED_SHA256)],
    ids=["adapter", "solved"],
)
def test_a_fixed_patch_of_another_format_has_the_pinned_bytes_and_id(patch: Patch, pinned_id: str, sha256: str) -> None:
    data = patchfile.to_bytes(patch)
    assert patch.id == pinned_id
    assert hashlib.sha256(data).hexdigest() == sha256
    again = patchfile.from_bytes(data)
    assert again == patch
    assert patchfile.to_bytes(again) == data


def test_an_adapter_s_file_is_what_the_page_says() -> None:
    patch = tiny_adapter()
    metadata = canonical_json(patch.header.to_json())
    assert '"title":"house style"' in metadata
    assert '"request"' not in metadata
    tensors = {name: array.tolist() for name, array in patch.named_tensors().items()}
    assert file_by_the_page(metadata, tensors) == (patchfile.to_bytes(patch), patch.id)


def test_a_solved_patch_s_file_is_what_the_page_says() -> None:
    patch = tiny_solved()
    tensors = {name: array.tolist() for name, array in patch.named_tensors().items()}
    data = patchfile.to_bytes(patch)
    assert file_by_the_page(canonical_json(patch.header.to_json()), tensors) == (data, patch.id)


def test_the_file_of_the_first_release_is_still_read() -> None:
    patch = patchfile.read(GOLDEN, GOLDEN_ID)
    assert patch.header.request.subject == "Tour Eiffel"
    assert [site.layer for site in patch.header.sites] == [1, 10]
    assert patchfile.to_bytes(patch) == GOLDEN.read_bytes()


def file_by_the_page(metadata: str, tensors: dict[str, Any]) -> tuple[bytes, str]:
    """A second implementation, from docs/format.md alone: the file's bytes and the id."""
    entries, body, content = [], b"", metadata.encode()
    for name in sorted(tensors):
        rows = tensors[name] if isinstance(tensors[name][0], list) else [tensors[name]]
        shape = [len(rows), len(rows[0])] if isinstance(tensors[name][0], list) else [len(rows[0])]
        raw = b"".join(struct.pack("<f", number) for row in rows for number in row)
        sizes = ",".join(map(str, shape))
        entries.append(
            f'"{name}":{{"dtype":"F32","shape":[{sizes}],"data_offsets":[{len(body)},{len(body) + len(raw)}]}}'
        )
        body += raw
        content += f"\n{name} {'x'.join(map(str, shape))} f32\n".encode() + raw
    text = json.dumps(metadata, ensure_ascii=False)
    header = f'{{"__metadata__":{{"rompatch":{text}}},{",".join(entries)}}}'.encode()
    while len(header) % 8:
        header += b" "
    return struct.pack("<Q", len(header)) + header + body, hashlib.sha256(content).hexdigest()


def test_the_worked_example_of_the_format_page_is_true() -> None:
    data, content = file_by_the_page(block("json metadata"), json.loads(block("json tensors")))
    assert content == block("text id")
    assert hashlib.sha256(data).hexdigest() == block("text sha256 of the file")
    assert patchfile.from_bytes(data) == tiny_patch()
    assert patchfile.to_bytes(tiny_patch()) == data
    length = int.from_bytes(data[:8], "little")
    assert f"The header is {length} bytes long with its padding, the file {len(data)}." in PAGE.read_text("utf-8")
    assert f"begin with `{data[8 + length :][:8].hex()}`" in PAGE.read_text("utf-8")


def test_the_page_names_every_limit() -> None:
    limits = " ".join(PAGE.read_text("utf-8").split("## Limits")[1].split("##")[0].split())
    for words in ("2^28 bytes", "2^24 bytes", "1 to 1024 sites", "1 to 4096 keys", "1 to 2^20", "65536", "32 levels"):
        assert words in limits
