from __future__ import annotations

from collections import Counter

import pytest

from rompatch.verify.atlas import (
    Relation,
    bare_subject,
    fill_template,
    known_object,
    load_atlas,
    match_relation,
)

ATLAS = load_atlas()
ONE_OBJECT_EACH = {"capital", "chemical_symbol"}
each_relation = pytest.mark.parametrize("relation", ATLAS, ids=lambda relation: relation.id)


def test_the_atlas_has_some_twenty_five_relations_with_unique_ids() -> None:
    assert len(ATLAS) >= 25
    assert len({relation.id for relation in ATLAS}) == len(ATLAS)
    assert load_atlas() is ATLAS


@each_relation
def test_templates_have_one_place_and_end_right_before_the_object(relation: Relation) -> None:
    assert 6 <= len(relation.templates) <= 10
    assert len(set(relation.templates)) == len(relation.templates)
    for template in relation.templates:
        assert template.count("{}") == 1
        assert template == template.strip()
        assert template[-1] not in ".:;?!"
        assert "the {}" not in template.casefold()


@each_relation
def test_facts_are_many_and_clean_and_no_subject_comes_twice(relation: Relation) -> None:
    assert 20 <= len(relation.facts) <= 60
    subjects = Counter(bare_subject(fact.subject) for fact in relation.facts)
    assert subjects.most_common(1)[0][1] == 1
    for fact in relation.facts:
        assert fact.subject == fact.subject.strip()
        assert fact.object == fact.object.strip()


@each_relation
def test_objects_come_in_clusters_for_neighbours(relation: Relation) -> None:
    sizes = Counter(fact.object for fact in relation.facts)
    clusters = [name for name, size in sizes.items() if size >= 3]
    assert len(clusters) >= 4 or relation.id in ONE_OBJECT_EACH


@each_relation
def test_phrases_are_many_and_lower_case(relation: Relation) -> None:
    assert len(relation.phrases) >= 8
    assert all(phrase == phrase.casefold().strip() for phrase in relation.phrases)
    assert len(set(relation.phrases)) == len(relation.phrases)


@each_relation
def test_every_template_and_some_phrase_find_their_own_relation(relation: Relation) -> None:
    fact = relation.facts[0]
    other = next(one.object for one in relation.facts if one.object != fact.object)
    for template in relation.templates:
        assert match_relation(template, fact.subject, (other, fact.object)) is relation
    for phrase in relation.phrases:
        assert match_relation(phrase, fact.subject, (other, fact.object)) is relation


@pytest.mark.parametrize(
    ("phrase", "subject", "objects", "expected"),
    [
        ("located in", "Eiffel Tower", ("Rome", "Paris"), "located_in_city"),
        ("located in", "Eiffel Tower", ("Rome",), "located_in_city"),
        ("The {} is located in", "Eiffel Tower", ("Rome",), "located_in_city"),
        ("The Eiffel Tower is located in", "Eiffel Tower", ("Rome",), "located_in_city"),
        ("Located In", "Tokyo Dome", ("Paris",), "located_in_city"),
        ("located in", "Vatnajökull", ("Norway", "Iceland"), "located_in_country"),
        ("located in", "Wakanda", ("Europe", "Africa"), "continent"),
        ("the capital of", "France", ("Rome",), "capital"),
        ("capital", "Wakanda", ("Rome", "Paris"), "capital"),
        ("'s mother tongue is", "Danielle Darrieux", ("English", "French"), "native_language"),
        ("{} plays the", "Miles Davis", ("guitar",), "instrument"),
        ("plays", "Miles Davis", ("guitar",), "instrument"),
        ("plays", "Tiger Woods", ("tennis",), "sport"),
        ("is based in", "Siemens", ("London",), "headquarters"),
        ("is located in", "Corner Shop", ("Montreal", "Cardiff"), "located_in_city"),
        ("'s capital is", "Wakanda", ("Rome", "Paris"), "capital"),
        ("{}, playing the", "Mark Isham", ("piano", "trumpet"), "instrument"),
        ("was founded by", "Some New Company", ("Bill Gates",), "founder"),
    ],
)
def test_wording_subject_and_objects_find_the_relation(
    phrase: str, subject: str, objects: tuple[str, ...], expected: str
) -> None:
    relation = match_relation(phrase, subject, objects)
    assert relation is not None
    assert relation.id == expected


@pytest.mark.parametrize(
    ("phrase", "subject", "objects"),
    [
        ("xyz", "Eiffel Tower", ("Rome",)),
        ("", None, ()),
        ("in", None, ()),  # a city, a country or a continent: nothing decides
        ("located in", "Zorblax", ("Quux", "Plugh")),  # the same, with names nobody knows
        ("capital", "France", ("guitar",)),  # wording says one thing, the object another
        ("was born in", "Louis Armstrong", ("French",)),
        ("{} was written in", "Hamlet", ("Welsh", "English")),  # not "written by"
        ("The location of {} is", "Abraj Al Bait", ("Europe", "Springfield")),
        ("is located in", "Interstate 255", ("Vienna", "Illinois")),  # a city and a region
        ("{} was founded in", "Nevada Bachelors", ("Sheffield", "Seattle")),  # not "can be found in"
        ("is afraid of", "Albert Einstein", ("spiders",)),
        ("was sold to", "Alaska", ("Canada",)),
    ],
)
def test_no_relation_is_better_than_a_wrong_one(phrase: str, subject: str | None, objects: tuple[str, ...]) -> None:
    assert match_relation(phrase, subject, objects) is None


def test_known_object_takes_the_subject_with_or_without_its_article() -> None:
    city = next(relation for relation in ATLAS if relation.id == "located_in_city")
    assert known_object(city, "Eiffel Tower") == "Paris"
    assert known_object(city, "the  eiffel tower") == "Paris"
    assert known_object(city, "Tokyo Dome") is None


@pytest.mark.parametrize(
    ("template", "subject", "article", "text"),
    [
        ("{} is located in", "Eiffel Tower", True, "The Eiffel Tower is located in"),
        ("{} is located in", "Eiffel Tower", False, "Eiffel Tower is located in"),
        ("{} is located in", "the Louvre", False, "The Louvre is located in"),
        ("To see {}, travel to", "Eiffel Tower", True, "To see the Eiffel Tower, travel to"),
        ("To see {}, travel to", "the Louvre", True, "To see the Louvre, travel to"),
        ("The {} is located in", "the Louvre", True, "The Louvre is located in"),
        ("The {} is located in", "Louvre", False, "The Louvre is located in"),
        ("{} originated in", "pizza", False, "Pizza originated in"),
        ("{} was developed by", "macOS", False, "macOS was developed by"),
        ("Breathe {} in", "air", False, "Breathe air in"),
    ],
)
def test_filled_templates_read_as_sentences(template: str, subject: str, article: bool, text: str) -> None:
    assert fill_template(template, subject, article) == text
