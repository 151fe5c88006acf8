"""Files of texts that generations are compared with, and texts about subjects. No torch here. Two forms of JSON:

    [{"relation_id": "P30", "target_id": "Q51", "samples": [{"name": "...", "text": "..."}]}]

is the snippets file of COUNTERFACT's authors: texts about subjects (``name``) that have an object in a relation. And

    {"20952": ["...", "..."]}

gives the texts of each record by its case id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rompatch.errors import SuiteError
from rompatch.verify.fields import Fields, Where
from rompatch.verify.jsonfile import read_json
from rompatch.verify.records import CounterfactRecord

_EXPECTED = "a list of snippets by relation and target, or an object with a list of texts for each case id"
Texts = tuple[str, ...]


@dataclass(frozen=True)
class TextFile:
    """Texts by record, by (relation, object) and by subject."""

    by_case: Mapping[int, Texts] = field(default_factory=dict)
    by_object: Mapping[tuple[str, str], Texts] = field(default_factory=dict)
    by_subject: Mapping[str, Texts] = field(default_factory=dict)

    def references(self, record: CounterfactRecord) -> Texts:
        """Texts about subjects that truly have o*; empty where the file has none: then RS is not measured."""
        key = (record.relation_id or "", record.target_new_id or "")
        return self.by_case.get(record.case_id) or self.by_object.get(key, ())

    def about_subject(self, record: CounterfactRecord) -> Texts:
        """Texts about the record's subject; empty where the file has none: then essence is not measured.

        The authors' code looks for the subject among the texts for o* alone, where a counterfactual's subject is not;
        here all of the file's texts about it count.
        """
        return self.by_case.get(record.case_id) or self.by_subject.get(record.subject, ())

    def documents(self) -> Iterator[str]:
        """Every text once, for document frequencies."""
        for texts in (*self.by_case.values(), *self.by_object.values()):
            yield from texts


def load_texts(path: Path | str) -> TextFile:
    """The texts of a file in one of the two forms.

    Raises:
        SuiteError: the file cannot be read, is no JSON or of another form, or has no texts; names entry and field.
    """
    data = read_json(path, _EXPECTED)
    if isinstance(data, list):
        found = _snippets(data)
    elif isinstance(data, Mapping):
        found = _by_case(path, data)
    else:
        raise SuiteError(f"The file {str(path)!r} holds no texts.", expected=_EXPECTED, found=type(data).__name__)
    if not any(True for _ in found.documents()):
        raise SuiteError(f"The file {str(path)!r} holds no texts.", expected=_EXPECTED, found="nothing in it")
    return found


def _snippets(entries: list[Any]) -> TextFile:
    by_object: dict[tuple[str, str], list[str]] = {}
    by_subject: dict[str, list[str]] = {}
    for position, entry in enumerate(entries):
        where = Where("snippets", position)
        fields = Fields(entry, where)
        texts = by_object.setdefault((fields.text("relation_id"), fields.text("target_id")), [])
        samples = entry.get("samples")
        if not isinstance(samples, list):
            raise where.wrong("samples", 'a list of {"name": "...", "text": "..."}', samples)
        for index, sample in enumerate(samples):
            inner = Fields(sample, where, f"samples[{index}]")
            texts.append(inner.text("text"))
            about = by_subject.setdefault(inner.text("name"), [])
            if texts[-1] not in about:  # one text may stand under several relations
                about.append(texts[-1])
    return TextFile(by_object=_frozen(by_object), by_subject=_frozen(by_subject))


def _frozen(lists: Mapping[Any, list[str]]) -> dict[Any, Texts]:
    return {key: tuple(texts) for key, texts in lists.items()}


def _by_case(path: Path | str, data: Mapping[str, Any]) -> TextFile:
    found: dict[int, Texts] = {}
    for position, name in enumerate(data):
        if not (name.isascii() and name.isdigit()):
            raise SuiteError(
                f"The file {str(path)!r} holds no texts.", expected=_EXPECTED, found=f"the key {name[:40]!r}"
            )
        found[int(name)] = Fields(data, Where("texts", position, int(name))).texts(name)
    return TextFile(by_case=found)
