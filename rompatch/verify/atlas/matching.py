"""Which relation of the atlas a user means. A wrong suite misjudges an edit, so in doubt the answer is None.

Three witnesses: the wording (phrases and templates), the subject (is it in the relation's facts?), and the objects
(are they things of the relation's kind?). Wording proposes, objects can veto, all three break ties.
"""

from __future__ import annotations

import re
from functools import cache

from rompatch.edits import PLACEHOLDER
from rompatch.verify.atlas.table import Relation, bare_subject, load_atlas, load_kinds

_EMPTY_WORDS = frozenset(
    (
        *(
            "the",
            "a",
            "an",
            "is",
            "was",
            "are",
            "were",
            "be",
            "been",
            "has",
            "have",
            "had",
            "it",
            "its",
            "that",
            "this",
        ),
        *("which", "who", "whose", "what", "of", "in", "on", "at", "by", "for", "to", "as", "with", "from", "and"),
    )
)
_LOOSE_ENDS = frozenset(("the", "is", "was", "are", "a", "an"))
_PREPOSITIONS = frozenset(("in", "by", "at", "on", "for", "from", "as", "to", "with"))
_STEM = re.compile(r"(?<=\w{3})(?:ing|ed|es|s)$")
_MIN_SIMILARITY = 0.5
_SURE = 0.8
"""Wording that is enough alone, when neither subject nor objects are known to the atlas."""
_CLOSED_KINDS = frozenset(("continent",))
"""Kinds whose members are all listed: a name that is not among them is something else."""
_SUBJECT_WEIGHT = 0.3
_OBJECT_WEIGHT = 0.2


def match_relation(phrase_or_template: str, subject: str | None, objects: tuple[str, ...]) -> Relation | None:
    """The relation that *phrase_or_template* means, or None when nothing matches or several match equally well.

    Args:
        phrase_or_template: "located in", or a template with ``{}``, or a whole prompt that contains *subject*.
        subject: the request's subject, if there is one.
        objects: new and true object, as far as known; an empty tuple is allowed.
    """
    text = phrase_or_template
    if subject and PLACEHOLDER not in text:
        text = re.sub(re.escape(subject), PLACEHOLDER, text, count=1, flags=re.IGNORECASE)
    scored = [(score, relation) for relation in load_atlas() if (score := _score(relation, text, subject, objects)) > 0]
    best = max((score for score, _ in scored), default=0.0)
    winners = [relation for score, relation in scored if score > best - 1e-9]
    return winners[0] if len(winners) == 1 else None


def known_object(relation: Relation, subject: str) -> str | None:
    """The object that the atlas holds true for *subject* (with or without "the"), or None."""
    fact = relation.by_subject.get(bare_subject(subject))
    return None if fact is None else fact.object


def wording_similarity(left: str, right: str) -> float:
    """Between 0 and 1: 1 for the same wording, else just under the Jaccard index of the content words' stems.

    Halved where the two end in different prepositions: "was written in" is not "was written by".
    """
    if _normal(left) == _normal(right):
        return 1.0
    first, second = _content(left), _content(right)
    if not first or not second:
        return 0.0
    endings = {_words(left)[-1], _words(right)[-1]}
    return (
        (0.475 if len(endings) == 2 and endings <= _PREPOSITIONS else 0.95) * len(first & second) / len(first | second)
    )


def _score(relation: Relation, text: str, subject: str | None, objects: tuple[str, ...]) -> float:
    """0 when the wording is too far off or the objects veto; else wording plus what the other witnesses add."""
    wording = max(wording_similarity(text, known) for known in (*relation.phrases, *relation.templates))
    if wording < _MIN_SIMILARITY:
        return 0.0
    subject_known = subject is not None and bare_subject(subject) in relation.by_subject
    fitting, foreign = _object_votes(relation, objects)
    if foreign and foreign >= fitting and (not subject_known or not fitting):
        return 0.0
    if not subject_known and not fitting and wording < _SURE:
        return 0.0
    return wording + _SUBJECT_WEIGHT * subject_known + _OBJECT_WEIGHT * (fitting - foreign)


def _object_votes(relation: Relation, objects: tuple[str, ...]) -> tuple[int, int]:
    """How many objects are of the relation's kind, and how many are only known as something else."""
    kinds = _objects_by_kind()
    fitting = foreign = 0
    for name in (" ".join(text.split()).casefold() for text in objects):
        if name in kinds[relation.object_kind]:
            fitting += 1
        elif relation.object_kind in _CLOSED_KINDS or any(name in members for members in kinds.values()):
            foreign += 1
    return fitting, foreign


@cache
def _objects_by_kind() -> dict[str, frozenset[str]]:
    """Kind -> case-folded names: ``kinds.json``, the objects of every relation, countries from ``capital``."""
    kinds = {kind: {name.casefold() for name in names} for kind, names in load_kinds().items()}
    for relation in load_atlas():
        kinds.setdefault(relation.object_kind, set()).update(relation.objects)
        if relation.id == "capital":
            kinds["country"].update(relation.by_subject)
    return {kind: frozenset(names) for kind, names in kinds.items()}


@cache
def _words(text: str) -> tuple[str, ...]:
    plain = re.sub(r"['’]s\b", " ", text.replace(PLACEHOLDER, " ").casefold())
    return tuple(re.findall(r"[\w'’-]+", plain))


def _normal(text: str) -> tuple[str, ...]:
    """The words without articles and forms of "to be" at either end, which users leave out or put in at will."""
    words = list(_words(text))
    while len(words) > 1 and words[0] in _LOOSE_ENDS:
        words.pop(0)
    while len(words) > 1 and words[-1] in _LOOSE_ENDS:
        words.pop()
    return tuple(words)


def _content(text: str) -> frozenset[str]:
    return frozenset(_STEM.sub("", word) for word in _words(text) if word not in _EMPTY_WORDS)
