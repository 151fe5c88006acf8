"""The atlas: a small table of relations with templates and true facts, in our own words.

It turns an ad-hoc edit ("Eiffel Tower", "located in", "Rome") into prompts that can judge it: paraphrases are a
relation's other templates, neighbours are its other subjects. One JSON file a relation in ``relations/``:

    id            file name without ``.json``
    title         what the object is, in words
    object_kind   what sort of thing the objects are (city, country, person, ...); relations share kinds
    phrases       how a user may type the relation
    templates     prompts with one ``{}`` that end right before the object
    facts         object -> subjects for which it is true; subjects carry "the" where a sentence wants it

``kinds.json`` lists further names by kind, so that "Montreal" is known to be a city though no fact mentions it.
"""

from __future__ import annotations

from rompatch.verify.atlas.matching import known_object, match_relation
from rompatch.verify.atlas.table import Fact, Relation, bare_subject, fill_template, load_atlas, same_object

__all__ = [
    "Fact",
    "Relation",
    "bare_subject",
    "fill_template",
    "known_object",
    "load_atlas",
    "match_relation",
    "same_object",
]
