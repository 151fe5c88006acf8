"""The atlas as values: relations and facts, read from the package's JSON files once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

from rompatch.edits import PLACEHOLDER, fill
from rompatch.errors import SuiteError

ARTICLE = "the "


@dataclass(frozen=True)
class Fact:
    """A true pair: *object* completes the relation's templates filled with *subject*."""

    subject: str
    object: str


@dataclass(frozen=True)
class Relation:
    """One relation of the atlas; the fields are those of its JSON file (see the package's docstring)."""

    id: str
    title: str
    object_kind: str
    phrases: tuple[str, ...]
    templates: tuple[str, ...]
    facts: tuple[Fact, ...]

    @cached_property
    def objects(self) -> frozenset[str]:
        """All objects, case-folded."""
        return frozenset(fact.object.casefold() for fact in self.facts)

    @cached_property
    def by_subject(self) -> Mapping[str, Fact]:
        """:func:`bare_subject` -> fact."""
        return {bare_subject(fact.subject): fact for fact in self.facts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Relation:
        """Build from the JSON form.

        Raises:
            KeyError: a field is missing.
        """
        return cls(
            id=data["id"],
            title=data["title"],
            object_kind=data["object_kind"],
            phrases=tuple(data["phrases"]),
            templates=tuple(data["templates"]),
            facts=tuple(Fact(subject, obj) for obj, subjects in data["facts"].items() for subject in subjects),
        )


@cache
def load_atlas() -> tuple[Relation, ...]:
    """All relations, sorted by id, read from the package once.

    Raises:
        SuiteError: the installed package lacks its atlas files.
    """
    folder = resources.files("rompatch.verify.atlas").joinpath("relations")
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".json")] if folder.is_dir() else []
    if not files:
        raise SuiteError(
            "The built-in atlas is missing from this installation.",
            expected="JSON files in rompatch/verify/atlas/relations",
            found="none",
            next_step="Install rompatch again, or pass --suite FILE.",
        )
    relations = (Relation.from_json(json.loads(entry.read_text(encoding="utf-8"))) for entry in files)
    return tuple(sorted(relations, key=lambda relation: relation.id))


@cache
def load_kinds() -> Mapping[str, tuple[str, ...]]:
    """Kind of thing -> names that are of it beside the objects of the relations (``kinds.json``)."""
    text = resources.files("rompatch.verify.atlas").joinpath("kinds.json").read_text(encoding="utf-8")
    return {kind: tuple(names) for kind, names in json.loads(text).items()}


def bare_subject(subject: str) -> str:
    """The key under which subjects are compared: no leading article, one space between words, case-folded."""
    words = " ".join(subject.split()).casefold()
    return words[len(ARTICLE) :] if words.startswith(ARTICLE) else words


def same_object(left: str, right: str) -> bool:
    """Whether two objects are the same thing, as far as spelling shows: one begins or ends with the words of the other.

    "Mozart" and "Wolfgang Amadeus Mozart", "Rome" and "Rome, Italy". Meant for keeping prompts out: too wide
    ("Korea", "South Korea") does no harm there, too narrow would score an edit on prompts whose answer it is.
    """
    first, second = (re.findall(r"\w+", text.casefold()) for text in (left, right))
    short, long = sorted((first, second), key=len)
    return bool(short) and (long[: len(short)] == short or long[-len(short) :] == short)


def fill_template(template: str, subject: str, article: bool = False) -> str:
    """Put *subject* into *template* as a sentence wants it.

    With *article* the subject gets a "the" unless it has an article already; a template that brings its own "the" in
    front of ``{}`` takes the subject without one. At the start of the sentence the first word is capitalised,
    except words with a capital further on ("iPhone", "macOS").

    >>> fill_template("{} is located in", "Eiffel Tower", article=True)
    'The Eiffel Tower is located in'
    >>> fill_template("To see {}, travel to", "the Louvre", article=False)
    'To see the Louvre, travel to'
    """
    subject = subject.strip()
    has_article = subject.casefold().startswith(ARTICLE)
    if template_has_article(template):
        subject = subject[len(ARTICLE) :] if has_article else subject
    elif article and not has_article:
        subject = ARTICLE + subject
    if template.startswith(PLACEHOLDER) and subject.split(" ", 1)[0].islower():
        subject = subject[0].upper() + subject[1:]
    return fill(template, subject)


def template_has_article(template: str) -> bool:
    """Whether ``the`` stands right before the subject's place."""
    before = template.split(PLACEHOLDER, 1)[0].casefold()
    return before == ARTICLE or before.endswith(" " + ARTICLE)
