"""Text for key statistics: files, folders, JSON lines; and the windows it is cut into."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pico import END, toy_tokenizer

from rompatch.compute.corpus import Corpus, open_corpus, windows
from rompatch.errors import StatisticsError


class Listed(Corpus):
    """A corpus of given documents."""

    def documents(self) -> Any:
        return iter(self.name.split("\0")) if self.name else iter(())


def listed(*documents: str) -> Corpus:
    return Listed("\0".join(documents), "0" * 64)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_one_document_with_its_content_for_id(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "Rome is old.\nParis is not.\n")
    corpus = open_corpus(str(path))
    assert list(corpus.documents()) == ["Rome is old.\nParis is not.\n"]
    assert corpus.name == "a.txt"
    assert list(corpus.documents()) == list(corpus.documents()), "it can be read again"
    moved = written(tmp_path / "b.txt", "Rome is old.\nParis is not.\n")
    assert open_corpus(str(moved)).id == corpus.id
    assert open_corpus(str(written(tmp_path / "c.txt", "Rome is old."))).id != corpus.id


def test_titles_start_documents_and_sections_do_not(tmp_path: Path) -> None:
    text = " = Rome = \n \n Old . \n = = History = = \n Long . \n = = = Kings = = = \n x = 1 = y \n= Oslo =\nNew.\n"
    documents = list(open_corpus(str(written(tmp_path / "wiki.txt", text))).documents())
    assert [document.split("\n")[0].strip() for document in documents] == ["= Rome =", "= Oslo ="]
    assert "".join(documents) == text


def test_a_long_file_is_read_in_pieces_cut_at_line_ends(tmp_path: Path) -> None:
    line = "Rome is old and large. " * 20 + "\n"
    documents = list(open_corpus(str(written(tmp_path / "a.txt", line * 200))).documents())
    assert "".join(documents) == line * 200
    assert len(documents) > 3
    assert all(document.endswith("\n") and len(document) < 25_000 for document in documents)


def test_a_folder_is_read_in_the_order_of_names_and_only_its_text_files(tmp_path: Path) -> None:
    written(tmp_path / "b.md", "second")
    written(tmp_path / "a.txt", "first")
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder.txt").mkdir()
    written(tmp_path / "sub" / "c.jsonl", '{"text": "third"}\n\n{"text": "fourth", "id": 4}\n')
    written(tmp_path / "d.bin", "not text")
    corpus = open_corpus(str(tmp_path))
    assert list(corpus.documents()) == ["first", "second", "third", "fourth"]
    assert corpus.name == tmp_path.name


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', '{"text": 7}', '{"text": null}', "[1]", '"text"', "5"])
def test_json_lines_without_text_are_refused_by_name(tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(StatisticsError, match=r"a\.jsonl cannot be read"):
        list(open_corpus(str(path)).documents())


def test_a_file_that_is_not_utf_8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Österreich".encode("latin-1"))
    with pytest.raises(StatisticsError, match=r"latin\.txt cannot be read.*UTF-8"):
        list(open_corpus(str(path)).documents())


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match="no such file"):
        open_corpus(str(tmp_path / "missing.txt"))
    with pytest.raises(StatisticsError, match="an empty folder"):
        open_corpus(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "mkfifo"), reason="permissions are POSIX's")
def test_a_file_that_may_not_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "secret.txt", "x")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything
        pytest.skip("permissions do not bind this user")
    with pytest.raises(StatisticsError, match=r"secret\.txt cannot be read"):
        open_corpus(str(path))


def test_a_hub_data_set_without_the_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.compute.corpus.find_spec", lambda _name: None)
    with pytest.raises(StatisticsError, match="pip install datasets"):
        open_corpus("hub:wikitext,wikitext-2-raw-v1,test")


def test_a_hub_data_set_is_known_by_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rompatch.compute.corpus._hub_revision", lambda _spec: "1111")
    first = open_corpus("hub:wikitext")
    monkeypatch.setattr("rompatch.compute.corpus._hub_revision", lambda _spec: "2222")
    assert open_corpus("hub:wikitext").id != first.id
    assert first.revision == "1111"


DOCUMENTS = st.lists(st.text("ab Rome.", max_size=30), max_size=6)


@given(documents=DOCUMENTS, length=st.integers(2, 12))
def test_windows_hold_every_token_of_every_document_once(documents: list[str], length: int) -> None:
    toy = toy_tokenizer()
    found = list(windows(toy, listed(*documents), length))
    start = toy.convert_tokens_to_ids(END)
    assert all(row[0] == start for row in found)
    assert all(len(row) == length for row in found[:-1]), "only the last may be shorter"
    assert all(1 < len(row) <= length for row in found[-1:])
    body = [token for row in found for token in row[1:]]
    text = [token for document in documents for token in toy(document, add_special_tokens=False).input_ids]
    assert [token for token in body if token != start] == text


def test_documents_are_packed_with_a_separator_between_them() -> None:
    toy = toy_tokenizer()
    rome, paris = (toy(text).input_ids for text in ("Rome", "Paris"))
    start = toy.convert_tokens_to_ids(END)
    assert list(windows(toy, listed("Rome", "Paris"), 100)) == [[start, *rome, start, *paris]]


def test_a_document_that_fills_its_window_needs_no_separator_behind_it() -> None:
    toy = toy_tokenizer()
    rome = toy("Rome", add_special_tokens=False).input_ids
    start = toy.convert_tokens_to_ids(END)
    assert list(windows(toy, listed("Rome", "Rome"), len(rome) + 1)) == [[start, *rome]] * 2


@pytest.mark.parametrize("length", [0, 1])
def test_a_window_without_room_for_text_is_refused(length: int) -> None:
    with pytest.raises(StatisticsError, match="holds no text"):
        list(windows(toy_tokenizer(), listed("Rome"), length))


def test_windows_of_json_lines_are_those_of_their_texts(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("Rome is old.", "Paris."))
    corpus = open_corpus(str(written(tmp_path / "a.jsonl", rows)))
    assert list(windows(toy_tokenizer(), corpus, 8)) == list(
        windows(toy_tokenizer(), listed("Rome is old.", "Paris."), 8)
    )


def test_the_first_version_of_the_cutting_is_not_in_the_id_and_later_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of statistics that exist must stay; windows that are cut otherwise must get others."""
    path = written(tmp_path / "a.txt", "Rome is old.\n")
    content = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()
    assert open_corpus(str(path)).id == content
    monkeypatch.setattr("rompatch.compute.corpus.CUTTING", 2)
    assert open_corpus(str(path)).id == f"{content}-cut-2"


def test_text_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt", "Rome is old.\n")
    corpus = open_corpus(str(path))
    corpus.check_unchanged()
    written(path, "Rome is.\n")
    with pytest.raises(StatisticsError, match=r"a\.txt was changed while it was read"):
        corpus.check_unchanged()
    path.unlink()
    with pytest.raises(StatisticsError, match="was changed"):
        corpus.check_unchanged()
