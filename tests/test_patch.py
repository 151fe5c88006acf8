"""A patch is a value: equal content, equal id; any change of content, another id."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_patches import tiny_patch, tiny_site

from rompatch.errors import SubjectError
from rompatch.patch import (
    SHORT_ID,
    TENSOR_NAMES,
    BaseRef,
    Patch,
    PatchHeader,
    SiteFactors,
    StatisticsRef,
    canonical_json,
    content_id,
)

PATCH = tiny_patch()
HEADER = replace(
    PATCH.header,
    statistics=StatisticsRef("c" * 64, 1000, "wiki", 1e-4),
    contexts=("{}", "It is. {}"),
    hparams={"lr": 0.5, "steps": 20},
    versions={"torch": "2"},
)


def naive_id(patch: Patch) -> str:
    """The id from the words of docs/format.md alone."""
    content = json.dumps(patch.header.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    for n, name in sorted((n, name) for n in range(len(patch.factors)) for name in TENSOR_NAMES):
        array = getattr(patch.factors[n], name)
        content += f"\nsite.{n}.{name} {'x'.join(map(str, array.shape))} f32\n".encode()
        content += struct.pack(f"<{array.size}f", *array.reshape(-1).tolist())
    return hashlib.sha256(content).hexdigest()


def test_the_id_is_what_the_format_page_says() -> None:
    assert PATCH.id == naive_id(PATCH)
    assert PATCH.short_id == PATCH.id[:SHORT_ID]


def test_equal_content_has_equal_id_whoever_made_it() -> None:
    factors = PATCH.factors[0]
    laid_out_otherwise = SiteFactors(
        **{
            name: np.asfortranarray(getattr(factors, name)).astype(">f4" if name == "key" else "<f4")
            for name in TENSOR_NAMES
        }
    )
    hparams = dict(reversed(list(PATCH.header.hparams.items())))
    copy = Patch(replace(PATCH.header, hparams=hparams), (laid_out_otherwise, *PATCH.factors[1:]))
    assert copy.id == PATCH.id
    assert copy == PATCH
    assert len({copy, PATCH}) == 1


def test_a_patch_equals_nothing_but_a_patch() -> None:
    assert PATCH.id != PATCH
    assert tiny_patch("Big Ben") != PATCH


SITE = HEADER.sites[0]
CHANGES: list[tuple[str, Any]] = [
    ("method", "other"),
    ("hparams", {"lr": 0.5, "steps": 21}),
    ("hparams", {"lr": 0.5}),
    ("contexts", ("{}",)),
    ("contexts", ("It is. {}", "{}")),
    ("seed", 99),
    ("document_start", not HEADER.document_start),
    ("statistics", None),
    ("versions", {"torch": "3"}),
    ("format_version", 2),
    ("more_statistics", (StatisticsRef("c" * 64, 9, "text", 0.1),)),
    ("title", "house style"),
    ("sites", (replace(SITE, layer=2),)),
    ("sites", (replace(SITE, parameter="x.weight"),)),
    ("sites", (replace(SITE, d_out=9),)),
    ("sites", (replace(SITE, d_in=9),)),
    ("sites", (replace(SITE, transposed=not SITE.transposed),)),
    ("sites", (replace(SITE, dtype="float16"),)),
    ("sites", (replace(SITE, sha256="0" * 64),)),
    *(("base", replace(HEADER.base, **{field.name: "other"})) for field in fields(BaseRef)),
    *(
        ("statistics", replace(HEADER.statistics, **{name: value}))  # type: ignore[type-var]
        for name, value in {"id": "d" * 64, "tokens": 1, "corpus": "x", "ridge": 1e-3}.items()
    ),
    *(
        ("request", replace(HEADER.request, **{name: value}))
        for name, value in {
            "subject": "Big Ben",
            "template": "{} is in",
            "target_new": "Oslo",
            "target_true": "Bern",
            "relation": "is where",
        }.items()
    ),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=lambda value: value if isinstance(value, str) else "")
def test_any_changed_field_of_the_header_changes_the_id(name: str, value: Any) -> None:
    before, after = Patch(HEADER, PATCH.factors), Patch(replace(HEADER, **{name: value}), PATCH.factors)
    assert after.id != before.id
    assert after != before


def test_the_changes_above_cover_every_field() -> None:
    assert {name for name, _ in CHANGES} == {field.name for field in fields(PatchHeader)}


@pytest.mark.parametrize("name", TENSOR_NAMES)
def test_one_bit_of_any_tensor_changes_the_id(name: str) -> None:
    factors = PATCH.factors[0]
    array = getattr(factors, name).copy()
    array.reshape(-1)[-1] = np.nextafter(array.reshape(-1)[-1], np.float32(np.inf))
    changed = replace(factors, **{name: array})
    assert Patch(PATCH.header, (changed, *PATCH.factors[1:])).id != PATCH.id


def test_shape_and_name_of_a_tensor_are_part_of_the_id() -> None:
    array = np.arange(6, dtype=np.float32)
    ids = {
        content_id("", {"a": array}),
        content_id("", {"b": array}),
        content_id("", {"a": array.reshape(2, 3)}),
        content_id("", {"a": array.reshape(3, 2)}),
        content_id(" ", {"a": array}),
    }
    assert len(ids) == 5


def test_the_order_of_tensors_does_not_matter() -> None:
    one, two = np.ones(2, np.float32), np.zeros(3, np.float32)
    assert content_id("h", {"a": one, "b": two}) == content_id("h", {"b": two, "a": one})


def test_a_header_survives_json() -> None:
    assert PatchHeader.from_json(json.loads(canonical_json(HEADER.to_json()))) == HEADER
    bare = replace(HEADER, statistics=None)
    assert PatchHeader.from_json(json.loads(canonical_json(bare.to_json()))) == bare


@pytest.mark.parametrize("name", sorted(HEADER.to_json()))
def test_a_header_without_one_of_its_fields_is_refused(name: str) -> None:
    data = {key: value for key, value in HEADER.to_json().items() if key != name}
    with pytest.raises(KeyError, match=name):
        PatchHeader.from_json(data)


def test_tensors_are_named_by_site() -> None:
    two = Patch(replace(PATCH.header, sites=(tiny_site(1), tiny_site(2))), (PATCH.factors[0], PATCH.factors[0]))
    assert list(two.named_tensors()) == [f"site.{n}.{name}" for n in (0, 1) for name in TENSOR_NAMES]
    assert all(array.dtype == np.dtype("<f4") for array in two.named_tensors().values())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON)
def test_canonical_json_reads_back_and_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(list(value.items())))) == text


def test_canonical_json_is_compact_sorted_utf8() -> None:
    assert canonical_json({"b": 1, "a": ["é", None, 0.5]}) == '{"a":["é",null,0.5],"b":1}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_refuses_what_json_does_not_have(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": number})


def test_the_request_in_a_header_is_checked() -> None:
    data = HEADER.to_json()
    data["request"]["subject"] = ""
    with pytest.raises(SubjectError):
        PatchHeader.from_json(data)
