"""Devices and limits are checked before anything is loaded, and the error says what there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rompatch.errors import ModelError
from rompatch.models import load_base
from rompatch.placement import Placement, devices, load_options, placement


def test_the_processor_is_always_there() -> None:
    assert devices()[0] == "cpu"
    assert placement() == placement("cpu") == Placement(torch.device("cpu"))
    assert load_options(placement()) == {}


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("warp", "no such kind of device"),
        ("", "no such kind of device"),
        ("cpu:1", "1 of that kind"),
        ("meta", "holds no numbers"),
        ("cuda:99", "cuda|counted from 0"),
        ("mps:7", "mps|counted from 0"),
        ("xpu", "xpu"),
    ],
)
def test_a_device_that_is_not_here_is_refused_before_the_model_is_looked_for(device: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_base("./nowhere", device=device)
    assert repr(device) in str(caught.value)
    assert caught.value.expected == ", ".join([*devices(), "auto"])


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        ("cpu=2GiB", {"cpu": 2 << 30}),
        ({"cpu": "1.5 mb"}, {"cpu": 1_500_000}),
        ({"cpu": 4096}, {"cpu": 4096}),
        ("", {}),
        (None, {}),
    ],
)
def test_limits_are_read_with_their_units(limits: object, sizes: dict[str, int]) -> None:
    assert placement("auto", limits).max_memory == sizes  # type: ignore[arg-type]


def test_a_device_without_a_limit_may_fill_up() -> None:
    options = load_options(placement("auto", "cpu=1MB"))
    assert options["device_map"] == "auto"
    assert options["max_memory"]["cpu"] == 10**6
    assert load_options(placement("auto")) == {"device_map": "auto"}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("cpu", "no size"),
        ("cpu=much", "'much'"),
        ("cpu=0", "no size"),
        ("cpu=-1GB", "no size"),
        ("disk=1GB", "takes what is left"),
        ("warp=1GB", "no such device"),
        ({99: "1GB"}, "no such device"),
    ],
)
def test_a_limit_that_is_none_is_refused(limits: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_base("./nowhere", device="auto", max_memory=limits)  # type: ignore[arg-type]


def test_limits_without_auto_are_refused(tmp_path: Path) -> None:
    for options in ({"max_memory": "cpu=1GB"}, {"offload_folder": tmp_path}):
        with pytest.raises(ModelError, match="Add --device auto"):
            load_base("./nowhere", **options)  # type: ignore[arg-type]


def test_an_offload_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="not a folder"):
        load_base("./nowhere", device="auto", offload_folder=tmp_path / "file")
