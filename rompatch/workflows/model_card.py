"""README.md of a baked checkpoint: the base's own card, with what was changed in front of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rompatch import __version__
from rompatch.apply.baked import CARD, MANIFEST, Written
from rompatch.default_model import ALIASES
from rompatch.patch import SHORT_ID, BaseRef
from rompatch.store.records import PatchRecord
from rompatch.workflows.opened import OpenStore

METRICS = ("s", "es", "ps", "ns")
_OURS = ("base_model", "base_model_relation", "library_name")
_TAGS = ("rompatch", "model-editing")
_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:")
_ITEM = re.compile(r"^[ \t]*-[ \t]+(.*?)[ \t]*$", re.MULTILINE)


def model_card(
    store: OpenStore, source: str, folder: Path, base: BaseRef, records: Sequence[PatchRecord], written: Written
) -> str:
    """The card: front matter, which facts were changed, with their newest scores, then the base's own text."""
    front, body = split_card(_read(folder / CARD))
    what = f"`{source}` ({base.model_type}, {base.dtype}) with {counted(records)}"
    lines = [
        f"# {source}, edited",
        "",
        f"This checkpoint is {what}, made by rompatch {__version__}.",
        "Every other tensor is the base's own, byte for byte.",
        "",
        "| patch | prompt | true object | new object | S | ES | PS | NS |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_row(store, record) for record in records),
        "",
        "| tensor | sha256 in the base | sha256 here |",
        "| --- | --- | --- |",
        *(f"| `{one.stored_as}` | `{one.sha256_before}` | `{one.sha256_after}` |" for one in written.rewritten),
        "",
        "Scores are those of `rompatch verify`, in per cent.",
        f"`{MANIFEST}` holds what makes this reproducible; `rompatch audit` checks it.",
        "",
    ]
    if body.strip():
        lines += ["---", "", "The base's own card:", "", body.strip("\r\n"), ""]
    return front_matter(front, source) + "\n" + "\n".join(lines)


def counted(records: Sequence[PatchRecord]) -> str:
    """``1 patch``, ``2 patches``."""
    return f"{len(records)} patch{'es' if len(records) != 1 else ''}"


def split_card(text: str) -> tuple[str, str]:
    """Front matter (without its fences) and the text below it."""
    match = _FRONT.match(text)
    return (match[1], text[match.end() :]) if match is not None else ("", text)


def front_matter(base: str, source: str) -> str:
    """The base's front matter, licence and all, with the keys and tags that say what this is."""
    kept = [entry for entry in _entries(base) if _key(entry) not in (*_OURS, "tags")]
    tags = next((_tags(entry) for entry in _entries(base) if _key(entry) == "tags"), [])
    ours = [f"base_model: {_hub_name(source)}", "base_model_relation: finetune", "library_name: transformers", "tags:"]
    ours += [f"- {tag}" for tag in dict.fromkeys([*tags, *_TAGS])]
    return "\n".join(["---", *(entry.rstrip("\r\n") for entry in kept), *ours, "---", ""])


def _entries(text: str) -> list[str]:
    """A mapping's text, cut before every key at its left edge."""
    entries: list[str] = []
    for line in text.splitlines(keepends=True):
        if _KEY.match(line) or not entries:
            entries.append(line)
        else:
            entries[-1] += line
    return [entry for entry in entries if entry.strip()]


def _key(entry: str) -> str | None:
    match = _KEY.match(entry)
    return None if match is None else match[1]


def _tags(entry: str) -> list[str]:
    """The items of a list, written ``[a, b]`` or one a line."""
    value = entry.split(":", 1)[1].strip()
    if value.startswith("["):
        return [item.strip() for item in value.strip("[]").replace("\n", " ").split(",") if item.strip()]
    return _ITEM.findall(value) or ([value] if value else [])


def _hub_name(source: str) -> str:
    return ALIASES[source].hub_id if source in ALIASES else source


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _row(store: OpenStore, record: PatchRecord) -> str:
    runs = store.ledger.verifications(record.id, limit=1)
    scores = [runs[0].score(metric) if runs else None for metric in METRICS]
    cells = [
        f"`{record.id[:SHORT_ID]}`",
        *record.fact_cells,
        *("not measured" if score is None else f"{100 * score:.1f}" for score in scores),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
