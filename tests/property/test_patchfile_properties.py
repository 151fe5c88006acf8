"""Any patch survives its file; any damage to the file is noticed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from tiny_patches import tiny_factors, tiny_patch, tiny_site

from rompatch import patchfile
from rompatch.edits import EditRequest
from rompatch.errors import PatchFileError
from rompatch.patch import Patch, canonical_json

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
WORDS = TEXT.filter(lambda text: bool(text.strip()) and "{}" not in text)


@st.composite
def patches(draw: st.DrawFn) -> Patch:
    layers = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    sites = tuple(tiny_site(layer, d_out=draw(st.integers(1, 5)), d_in=draw(st.integers(1, 5))) for layer in layers)
    patch = tiny_patch(
        request=EditRequest(draw(WORDS), "{} is in", draw(WORDS)),
        sites=sites,
        hparams=draw(st.dictionaries(TEXT, JSON, max_size=4)),
        contexts=tuple(draw(st.lists(TEXT, max_size=3))),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
    )
    n_keys = draw(st.lists(st.integers(1, 3), min_size=len(sites), max_size=len(sites)))
    factors = [tiny_factors(site, count, draw(st.integers(0, 99))) for site, count in zip(sites, n_keys, strict=True)]
    return Patch(patch.header, tuple(factors))


@settings(max_examples=60, deadline=None)
@given(patches())
def test_a_patch_survives_its_file(patch: Patch) -> None:
    data = patchfile.to_bytes(patch)
    again = patchfile.from_bytes(data)
    assert again.id == patch.id
    assert again.header.to_json() == patch.header.to_json()
    for name, array in patch.named_tensors().items():
        np.testing.assert_array_equal(again.named_tensors()[name], array)
    assert patchfile.to_bytes(again) == data


@settings(max_examples=60, deadline=None)
@given(patches())
def test_the_safetensors_library_writes_the_same_bytes_and_reads_them(patch: Patch) -> None:
    data = patchfile.to_bytes(patch)
    assert save(patch.named_tensors(), metadata={"rompatch": canonical_json(patch.header.to_json())}) == data
    assert load(data).keys() == patch.named_tensors().keys()


DATA = patchfile.to_bytes(tiny_patch("Tour Eiffel, « la »", layers=(1, 10), n_keys=2))


def accepted(data: bytes) -> str | None:
    """The id of what *data* holds, None where it is refused; any other exception fails the test."""
    try:
        return patchfile.from_bytes(data).id
    except PatchFileError:
        return None


@settings(max_examples=250, deadline=None)
@given(position=st.integers(0, len(DATA) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_the_id(position: int, flip: int) -> None:
    damaged = bytearray(DATA)
    damaged[position] ^= flip
    assert accepted(bytes(damaged)) != patchfile.from_bytes(DATA).id


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, len(DATA) - 1))
def test_a_truncated_file_is_refused(length: int) -> None:
    assert accepted(DATA[:length]) is None


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert accepted(data) is None
    assert accepted(len(data).to_bytes(8, "little") + data) is None
