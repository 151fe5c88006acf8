"""Statistics on disk: saved, found, damaged, interrupted, shipped."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rompatch.compute.second_moment import SecondMoment
from rompatch.compute.statistics import SELF_SAMPLED, Statistics, StatisticsKey
from rompatch.compute.statistics_files import StatisticsCache, pack_factor, unpack_factor, write_packed
from rompatch.errors import AmbiguousIdError, OutputError, StatisticsError
from rompatch.patch import canonical_json

D_IN = 6
KEY = StatisticsKey("a" * 64, "x.weight", "b" * 64, "c" * 64, "float32", "wiki.txt", "d" * 64, 100, 32)


def second_moment(seed: int, d_in: int = D_IN) -> torch.Tensor:
    keys = torch.randn(4 * d_in, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keys *= torch.logspace(0, -2, d_in, dtype=torch.float64)  # unequal directions, as in real models
    return (keys.T @ keys / len(keys)).float()


def statistics(seed: int = 0, **changes: Any) -> Statistics:
    key = replace(KEY, **changes)
    return Statistics(key, second_moment(seed), key.tokens)


@pytest.fixture
def cache(tmp_path: Path) -> StatisticsCache:
    return StatisticsCache(tmp_path / "cache", shipped=tmp_path / "shipped")


def test_what_is_saved_is_loaded_bit_for_bit(cache: StatisticsCache) -> None:
    made = statistics()
    file = cache.save(made, {"seconds": 1.5})
    loaded = cache.load(file)
    assert (loaded.key, loaded.tokens) == (made.key, made.tokens)
    assert torch.equal(loaded.second_moment, made.second_moment)
    assert cache.find(made.key) == file
    assert file.id == made.key.id
    assert not file.shipped
    assert file.provenance == {"seconds": 1.5}
    assert file.size == file.path.stat().st_size
    assert [path.name for path in cache.folder.iterdir()] == [f"{made.key.id}.safetensors"]


def test_a_listing_says_what_it_is(cache: StatisticsCache) -> None:
    listed = cache.save(statistics()).to_json()
    assert listed["parameter"] == "x.weight"
    assert listed["corpus"] == "wiki.txt"
    assert listed["id"] == KEY.id
    json.dumps(listed)


def test_an_empty_cache_has_nothing(cache: StatisticsCache) -> None:
    assert list(cache.files()) == []
    assert cache.find(KEY) is None
    assert cache.best_for(KEY) is None
    assert cache.load_partial(KEY, D_IN) is None


def with_tensors(**tensors: torch.Tensor) -> Callable[[Path], None]:
    content = canonical_json({"key": vars(KEY), "tokens": 1, "provenance": {}})
    return lambda path: save_file(tensors, path, {"statistics": content})


def with_metadata(metadata: dict[str, str]) -> Callable[[Path], None]:
    return lambda path: save_file({"second_moment": torch.eye(2)}, path, metadata)


def holding(value: float) -> torch.Tensor:
    matrix = torch.eye(2)
    matrix[0, 1] = value
    return matrix


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        with_metadata({}),
        with_metadata({"statistics": "not json"}),
        with_metadata({"statistics": "[]"}),
        with_metadata({"statistics": "{}"}),
        with_metadata({"statistics": canonical_json({"key": vars(KEY), "tokens": "many", "provenance": {}})}),
        with_metadata({"statistics": canonical_json({"key": {"x": 1}, "tokens": 1, "provenance": {}})}),
    ],
)
def test_a_file_whose_head_is_damaged_is_left_out_and_named_when_loaded(
    cache: StatisticsCache, damage: Callable[[Path], None]
) -> None:
    file = cache.save(statistics())
    whole = cache.save(statistics(1, tokens=7))
    damage(file.path)
    assert list(cache.files()) == [whole]
    assert cache.best_for(KEY) == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.unlink(),
        with_tensors(second_moment=holding(torch.nan)),
        with_tensors(second_moment=holding(torch.inf)),
        with_tensors(second_moment=torch.ones(2, 3)),
        with_tensors(second_moment=torch.ones(4)),
        with_tensors(other=torch.eye(2)),
        with_tensors(second_moment=torch.eye(2), other=torch.eye(2)),
        with_tensors(triangle=torch.ones(5, dtype=torch.float16), scale=torch.ones(2)),
        with_tensors(triangle=torch.ones(3, dtype=torch.float16), scale=torch.ones(1, 2)),
    ],
)
def test_a_damaged_matrix_is_refused_by_file_name(cache: StatisticsCache, damage: Callable[[Path], None]) -> None:
    file = cache.save(statistics())
    damage(file.path)
    with pytest.raises(StatisticsError, match=file.path.name):
        cache.load(file)


def test_an_interrupted_pass_is_kept_and_forgotten_when_it_is_complete(cache: StatisticsCache) -> None:
    moment = SecondMoment(D_IN)
    moment.add(torch.randn(5, D_IN, generator=torch.Generator().manual_seed(0)))
    cache.save_partial(KEY, moment, 3)
    loaded = cache.load_partial(KEY, D_IN)
    assert loaded is not None
    assert loaded[1] == 3
    assert loaded[0].count == 5
    assert torch.equal(loaded[0].mean(), moment.mean())
    assert cache.load_partial(replace(KEY, tokens=1), D_IN) is None
    assert list(cache.files()) == [], "a partial file is no statistics"
    cache.save(statistics())
    assert cache.load_partial(KEY, D_IN) is None


STATE = {"id": KEY.id, "count": 5, "done": 3}
TOTAL = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tensors", "state"),
    [
        ({"total": TOTAL}, STATE),
        ({"total": TOTAL.float(), "pending": torch.ones(5, 2)}, STATE),
        ({"total": TOTAL / 0, "pending": torch.ones(5, 2)}, STATE),
        ({"total": TOTAL, "pending": torch.full((5, 2), torch.nan)}, STATE),
        ({"total": TOTAL, "pending": torch.ones(5, 3)}, STATE),
        ({"total": TOTAL, "pending": torch.ones(4, 2)}, STATE),
        ({"total": torch.ones(2, dtype=torch.float64), "pending": torch.ones(5, 2)}, STATE),
        ({"total": torch.eye(3, dtype=torch.float64), "pending": torch.ones(5, 3)}, STATE),
        ({"total": TOTAL, "pending": torch.ones(5, 2)}, {"count": 5}),
        ({"total": TOTAL, "pending": torch.ones(5, 2)}, {**STATE, "count": None}),
        ({"total": TOTAL, "pending": torch.ones(5, 2)}, {**STATE, "done": 0}),
        ({"total": TOTAL, "pending": torch.ones(5, 2)}, {**STATE, "id": "e" * 64}),
        ({"total": TOTAL, "pending": torch.ones(101, 2)}, {**STATE, "count": 101}),
        ({"total": TOTAL, "pending": torch.ones(5, 2)}, [5]),
        ({"total": TOTAL, "block": torch.eye(2)}, {"count": 5, "in_block": 5, "windows": 3}),
    ],
)
def test_an_interrupted_pass_that_is_damaged_or_of_another_site_is_refused_by_file_name(
    cache: StatisticsCache, tensors: dict[str, torch.Tensor], state: Any
) -> None:
    cache.save_partial(KEY, SecondMoment(2), 1)
    (path,) = cache.folder.iterdir()
    save_file(tensors, path, {"statistics": json.dumps(state)})
    with pytest.raises(StatisticsError, match=path.name):
        cache.load_partial(KEY, 2)
    path.write_bytes(b"cut off")
    with pytest.raises(StatisticsError, match=path.name):
        cache.load_partial(KEY, 2)
    cache.remove_partial(KEY)
    assert cache.load_partial(KEY, 2) is None


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), d_in=st.integers(1, 20))
def test_a_packed_factor_stays_close_and_positive_definite(seed: int, d_in: int) -> None:
    C = second_moment(seed, d_in)
    triangle, scale = pack_factor(C)
    assert triangle.dtype == torch.float16
    assert triangle.shape == (d_in * (d_in + 1) // 2,)
    back = unpack_factor(triangle, scale)
    assert (back - C).norm() <= 2e-3 * C.norm()
    ridged = C.diagonal() + 1e-6 * C.diagonal().mean()  # the ridge under which it is packed
    relative = (back.diagonal() - ridged).abs() / ridged
    assert relative.max() < 5e-3, "small directions too"
    assert torch.linalg.cholesky_ex(back.double() + 1e-6 * C.diagonal().mean() * torch.eye(d_in))[1] == 0
    torch.testing.assert_close(back, back.T)


def test_shipped_statistics_load_like_any_and_are_never_removed(cache: StatisticsCache, tmp_path: Path) -> None:
    made = statistics()
    write_packed(made, tmp_path / "shipped" / "one.safetensors", {"by": "us"})
    (file,) = cache.files()
    assert file.shipped
    assert file.provenance == {"by": "us"}
    assert cache.best_for(KEY) == file
    torch.testing.assert_close(cache.load(file).second_moment, made.second_moment, rtol=2e-2, atol=2e-3)
    with pytest.raises(StatisticsError, match="come with rompatch"):
        cache.remove(file)
    assert file.path.exists()


def test_an_id_that_is_shipped_and_cached_stands_once_and_its_copy_can_be_removed(
    cache: StatisticsCache, tmp_path: Path
) -> None:
    write_packed(statistics(), tmp_path / "shipped" / "one.safetensors", {})
    cached = cache.save(statistics())
    (shipped,) = cache.files()
    assert shipped.shipped
    assert cache.resolve(cached.id[:6]) == shipped
    cache.remove(shipped)
    assert not cached.path.exists()
    assert list(cache.files()) == [shipped]


def test_a_cached_file_is_removed_and_removing_it_again_is_no_error(cache: StatisticsCache) -> None:
    file = cache.save(statistics())
    cache.remove(file)
    cache.remove(file)
    assert list(cache.files()) == []


def test_text_is_preferred_to_the_models_own_whatever_its_size_then_more_tokens(cache: StatisticsCache) -> None:
    own = cache.save(statistics(corpus=SELF_SAMPLED, corpus_id="seed 0", tokens=10**6))
    assert cache.best_for(KEY) == own
    little = cache.save(statistics(tokens=10))
    assert cache.best_for(KEY) == little
    more = cache.save(statistics(tokens=1000, corpus="other.txt", corpus_id="e" * 64))
    assert cache.best_for(KEY) == more


@pytest.mark.parametrize("field", ["inputs_sha256", "parameter", "tokenizer_hash", "config_hash", "dtype"])
def test_statistics_of_another_site_or_model_are_never_the_best(cache: StatisticsCache, field: str) -> None:
    cache.save(statistics(**{field: "other"}))
    assert cache.best_for(KEY) is None
    assert cache.find(KEY) is None


def test_a_prefix_names_statistics_if_only_one_has_it(cache: StatisticsCache) -> None:
    files = [cache.save(statistics(tokens=n)) for n in range(1, 20)]
    for file in files:
        assert cache.resolve(file.id[:12].upper()) == file
    first = next(f for f in files if sum(g.id[0] == f.id[0] for g in files) > 1)
    with pytest.raises(AmbiguousIdError, match="several"):
        cache.resolve(first.id[0])
    with pytest.raises(StatisticsError, match="stats list"):
        cache.resolve("zz")


def full_disk(*_args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_output_error_and_leaves_nothing(
    cache: StatisticsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OutputError, match=r"No space left.*ROMPATCH_CACHE"):
            cache.save(statistics())
        with pytest.raises(OutputError, match="No space left"):
            cache.save_partial(KEY, SecondMoment(2), 1)
    assert list(cache.folder.iterdir()) == []


def test_a_full_disk_leaves_the_older_file_as_it_was(cache: StatisticsCache, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cache.save(statistics())
    before = file.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(OutputError):
            cache.save(statistics(1))
    assert file.path.read_bytes() == before


def test_a_cache_that_cannot_be_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="ROMPATCH_CACHE"):
        StatisticsCache(tmp_path / "file", tmp_path).save(statistics())


def test_a_factor_is_computed_once_for_each_ridge() -> None:
    made = statistics()
    assert made.factor(1e-4) is made.factor(1e-4)
    assert not torch.equal(made.factor(1e-4), made.factor(1e-1))


def test_large_factors_are_kept_on_disk_and_go_with_their_statistics(
    cache: StatisticsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rompatch.compute.statistics.LARGE_FACTOR", 1)
    file = cache.save(statistics())
    first = cache.load(file).factor(1e-4)
    (kept,) = cache.folder.glob("*.factor")
    monkeypatch.setattr("rompatch.compute.statistics.cholesky_factor", None)  # reading must be enough
    assert torch.equal(cache.load(file).factor(1e-4), first)
    kept.write_bytes(b"damaged")
    assert cache.load_factor(file.key, 1e-4) is None
    cache.remove(file)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be synced there")
def test_a_saved_files_name_is_forced_onto_the_disk_too(
    cache: StatisticsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)))
    file = cache.save(statistics())
    assert synced == [file.path.stat().st_ino, file.path.parent.stat().st_ino]
