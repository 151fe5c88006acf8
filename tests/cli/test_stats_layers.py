"""``stats build`` at several layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from calling import Run, contents, read

PARAMETER = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def text(place: Path) -> Path:
    path = place / "text.txt"
    path.write_text("The Eiffel Tower is in Paris. Big Ben is in London.\n" * 50)
    return path


@pytest.mark.parametrize("layers", [("--layer", "0-2"), ("--layer", "0", "--layer", "1-2")])
def test_layers_are_named_one_by_one_or_as_a_range(
    run: Run, pico_folder: Path, text: Path, layers: tuple[str, ...]
) -> None:
    build = ("stats", "build", "--corpus", text, "--tokens", 300, "--model", pico_folder, *layers)
    lines = run(*build).stdout.splitlines()
    assert [line.rpartition(" at ")[2] for line in lines] == [PARAMETER.format(layer) for layer in range(3)]
    built = read(run(*build, "--json"))
    assert [one["parameter"] for one in built["statistics"]] == [PARAMETER.format(layer) for layer in range(3)]
    assert built["id"] == built["statistics"][0]["id"]
    assert len([file for file in read(run("stats", "list", "--json"))["statistics"] if not file["shipped"]]) == 3


def test_one_layer_is_a_list_of_one(run: Run, pico_folder: Path, text: Path) -> None:
    built = read(
        run("stats", "build", "--corpus", text, "--tokens", 50, "--model", pico_folder, "--layer", 1, "--json")
    )
    assert [one["id"] for one in built["statistics"]] == [built["id"]]


@pytest.mark.parametrize(
    ("layers", "code", "words"),
    [
        (["5-3"], 2, "write 3-5"),
        (["x"], 2, "neither a layer"),
        (["-1"], 2, "neither a layer"),
        (["1-"], 2, "neither a layer"),
        (["1,2"], 2, "neither a layer"),
        (["٣"], 2, "neither a layer"),
        (["1-2", "2"], 1, "Layer 2 is named twice"),
        (["3"], 1, "3"),
        (["0-999999"], 1, "3"),
    ],
)
def test_layers_that_cannot_be_are_refused_and_nothing_is_made(
    run: Run, pico_folder: Path, text: Path, tmp_path: Path, layers: list[str], code: int, words: str
) -> None:
    named = [part for layer in layers for part in ("--layer", layer)]
    result = run("stats", "build", "--corpus", text, "--model", pico_folder, *named, code=code)
    assert words in result.stderr
    assert result.stdout == ""
    assert not any(name.endswith((".safetensors", ".partial")) for name in contents(tmp_path))
