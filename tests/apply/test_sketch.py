"""Sketches of keys: small, the same on every machine, and near the cosines of the keys themselves."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tiny_patches import tiny_adapter, tiny_patch

from rompatch.apply.sketch import SIZE, candidates, sketch, sketches_of


def cosine(left: bytes, right: bytes) -> float:
    one, other = (np.frombuffer(data, "<f2").astype(float) for data in (left, right))
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_a_sketch_is_small_and_always_the_same() -> None:
    key = np.arange(1, 101, dtype=np.float32)
    data = sketch(key)
    assert len(data) == 2 * SIZE
    assert sketch(3 * key) == data, "the direction alone counts"
    assert hashlib.sha256(data).hexdigest()[:16] == "4205daa12dd393a0"


@pytest.mark.parametrize("wanted", [0.0, 0.5, 0.9, 0.98])
def test_cosines_of_sketches_are_those_of_the_keys(wanted: float) -> None:
    rng, errors = np.random.default_rng(0), []
    for _ in range(200):
        one, other = np.linalg.qr(rng.normal(size=(300, 2)))[0].T
        mixed = wanted * one + np.sqrt(1 - wanted**2) * other
        errors.append(cosine(sketch(one.astype(np.float32)), sketch(mixed.astype(np.float32))) - wanted)
    assert abs(np.mean(errors)) < 0.03
    assert np.std(errors) < 1.2 * (1 - wanted**2) / 8 + 0.002


def test_candidates_are_the_alike_and_no_others() -> None:
    rng = np.random.default_rng(1)
    keys = rng.normal(size=(50, 200)).astype(np.float32)
    near = keys[7] + 0.1 * rng.normal(size=200).astype(np.float32)
    assert candidates([sketch(near)], [sketch(key) for key in keys]) == [(0, 7)]


@pytest.mark.parametrize("damaged", [b"", b"short", b"\xff" * 2 * SIZE, b"\0" * 2 * SIZE])
def test_what_is_no_sketch_is_like_none(damaged: bytes) -> None:
    key = sketch(np.ones(10, np.float32))
    assert candidates([key], [damaged, key]) == [(0, 1)]
    assert candidates([damaged], [damaged, key]) == []


def test_every_site_has_one_and_an_adapter_none() -> None:
    assert [len(data) for data in sketches_of(tiny_patch(layers=(1, 2)))] == [2 * SIZE] * 2
    assert set(sketches_of(tiny_adapter())) == {b""}
