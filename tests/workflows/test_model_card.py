"""The model card keeps what the base's own says, and says first what was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pico import pico_base
from random_patches import fact_patch

from rompatch.store.records import ScoreRecord
from rompatch.workflows.model_card import front_matter, split_card
from rompatch.workflows.opened import BaseSpec
from rompatch.workflows.store import Store

CARD = """---
license: apache-2.0
language:
- en
- fr
base_model: somebody/earlier
tags:
- chat
- rompatch
widget:
  - text: "tags: none"
---
# A model

It says things.
---
More.
"""


def test_licence_and_languages_stay_and_the_base_becomes_this_one() -> None:
    front, body = split_card(CARD)
    made = front_matter(front, "owner/model")
    assert "license: apache-2.0\nlanguage:\n- en\n- fr\n" in made
    assert 'widget:\n  - text: "tags: none"\n' in made
    assert made.count("base_model:") == 1
    assert "base_model: owner/model\nbase_model_relation: finetune\n" in made
    assert made.endswith("tags:\n- chat\n- rompatch\n- model-editing\n---\n")
    assert body == "# A model\n\nIt says things.\n---\nMore.\n"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("tags: [chat, small]", ["chat", "small"]),
        ("tags: chat", ["chat"]),
        ("tags:\n  - chat\n  - small", ["chat", "small"]),
    ],
)
def test_tags_are_read_in_every_form(tags: str, expected: list[str]) -> None:
    made = front_matter(f"license: mit\n{tags}\n", "m")
    assert made.split("tags:\n")[1].splitlines()[:-1] == [
        f"- {tag}" for tag in [*expected, "rompatch", "model-editing"]
    ]


@pytest.mark.parametrize("text", ["", "no front matter\n", "---\nnever closed: yes\n", "# ---\n---\n"])
def test_a_card_without_front_matter_is_all_text(text: str) -> None:
    assert split_card(text) == ("", text)


def test_the_default_model_s_base_is_named_as_the_hub_does() -> None:
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in front_matter("", "smollm2-135m")


def test_a_baked_card_has_facts_scores_hashes_and_the_base_s_text(
    store: Store, tmp_path: Path, saved_base: Path
) -> None:
    import shutil

    folder = shutil.copytree(saved_base, tmp_path / "base")
    (folder / "README.md").write_text(CARD)
    patch = fact_patch(pico_base("llama"), 1)
    path = store.blobs.put(patch)
    record = store.ledger.add_patch(patch.header, patch_id=patch.id, file_size=path.stat().st_size)
    store.ledger.record_verification("s", source="s", scores=[ScoreRecord("post", "s", 0.915, 3)], patch_id=record.id)
    report = store.bake(tmp_path / "out", patch.id, spec=BaseSpec(str(folder))).report
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| `{patch.short_id}` | subject 1 is in | ? | Rome | 91.5 |" in text
    (tensor,) = report.rewritten
    assert f"| `{tensor.stored_as}` | `{tensor.sha256_before}` | `{tensor.sha256_after}` |" in text
    assert text.startswith("---\nlicense: apache-2.0\n")
    assert text.endswith("The base's own card:\n\n# A model\n\nIt says things.\n---\nMore.\n")
