"""Files of facts: every form that people save them in, and every way in which a line or a whole file can be wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rompatch.errors import RequestError
from rompatch.facts.fact import Fact
from rompatch.facts.reading import FactList, read_facts

TOWER = Fact("Eiffel Tower", "located in", "Rome")


def written(place: Path, data: str | bytes, name: str = "facts.csv") -> Path:
    path = place / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def facts(listed: FactList) -> list[Fact]:
    return [one.fact for one in listed.facts]


CSV = "subject,relation,object\nEiffel Tower,located in,Rome\n"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (CSV, "facts.csv"),
        (CSV.encode("utf-8-sig"), "facts.csv"),
        (CSV.replace("\n", "\r\n"), "facts.csv"),
        (CSV.replace("\n", "\r"), "facts.csv"),
        (CSV.rstrip(), "facts.csv"),
        ("\n" + CSV + "\n \n", "facts.csv"),
        (CSV.replace(",", ";"), "facts.csv"),
        (CSV.replace(",", "\t"), "facts.tsv"),
        ("Object, SUBJECT ,relation,true\n Rome,Eiffel Tower , located in,\n", "facts.csv"),
        ('subject,relation,object\n"Eiffel Tower","located in","Rome"\n', "facts"),
        (json.dumps({"subject": "Eiffel Tower", "relation": "located in", "object": "Rome"}), "facts.jsonl"),
        (b'\xef\xbb\xbf{"subject": "Eiffel Tower", "relation": "located in", "object": "Rome"}\r\n', "facts.jsonl"),
        ('\n{"subject": "Eiffel Tower", "relation": "located in", "object": "Rome", "true": null}', "facts"),
        ('{"subject": "Eiffel Tower", "relation": "located in", "object": "Rome", "error": "old"}', "facts.ndjson"),
    ],
)
def test_one_fact_in_every_form(tmp_path: Path, data: str | bytes, name: str) -> None:
    listed = read_facts(written(tmp_path, data, name))
    assert facts(listed) == [TOWER]
    assert listed.bad == ()


def test_every_field_arrives(tmp_path: Path) -> None:
    line = {"subject": "s", "relation": "r", "object": "o", "true": "t", "prompt": "{} p", "message": "m", "id": 7}
    line |= {"source": "w", "expires": "2030-01-31"}
    assert facts(read_facts(written(tmp_path, json.dumps(line), "a.jsonl"))) == [
        Fact("s", "r", "o", "t", "{} p", "m", "w", "2030-01-31", "7")
    ]
    assert facts(read_facts([line])) == facts(read_facts(written(tmp_path, json.dumps(line), "b.jsonl")))
    assert facts(read_facts([{"subject": "s", "prompt": "{} is in", "object": "o"}]))[0].wording == "{} is in"


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(CSV.encode())))
    assert facts(read_facts("-")) == [TOWER]


def test_quoted_commas_quotes_and_lines(tmp_path: Path) -> None:
    data = 'subject,relation,object\n"A, ""B""",located in,"two\nlines"\nEiffel Tower,located in,Rome\n'
    listed = read_facts(written(tmp_path, data))
    assert facts(listed) == [Fact('A, "B"', "located in", "two\nlines"), TOWER]
    assert [one.number for one in listed.facts] == [2, 4], "as editors count"


def test_a_bad_line_700_of_1000_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    for bad in ("Big Ben,in", 'Big "Ben,"in,x', '"Big Ben,in,x', ",in,x", "Big Ben,in,x,y"):
        lines = ["subject,relation,object", *(f"Subject {n},located in,Rome" for n in range(2, 1001))]
        lines[699] = bad
        listed = read_facts(written(tmp_path, "\n".join(lines)))
        assert len(listed.facts) == 998, bad
        assert [one.number for one in listed.bad] == [700], bad
        assert [one.number for one in listed.facts] == [n for n in range(2, 1001) if n != 700]


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ({"relation": "r", "object": "o"}, "subject", "subject is empty"),
        ({"subject": " ", "relation": "r", "object": "o"}, "subject", "subject is empty"),
        ({"subject": "s", "relation": "r"}, "object", "object is empty"),
        ({"subject": "s", "object": "o"}, "relation", "relation is empty"),
        ({"subject": "s", "relation": "{} a {}", "object": "o"}, "relation", "exactly one"),
        ({"subject": "s", "relation": "r", "object": "o", "true": "O"}, "true", "are the same"),
        ({"subject": "Rome", "prompt": "Rome is in", "object": "o"}, "prompt", "names the subject"),
        ({"subject": "Oslo", "prompt": "is in", "object": "o"}, "prompt", "exactly one"),
        ({"subject": 1, "relation": "r", "object": "o"}, "subject", "Expected: text. Found: int"),
        ({"subject": "s", "relation": ["r"], "object": "o"}, "relation", "Found: list"),
        ({"subject": "s", "relation": "r", "object": "\ud800"}, "object", "surrogate"),
        ({"subject": "s\0", "relation": "r", "object": "o"}, "subject", "NUL"),
        ({"subject": "s" * 10_001, "relation": "r", "object": "o"}, "subject", "10,001"),
        ({"subjet": "s", "relation": "r", "object": "o"}, "subjet", "Did you mean 'subject'"),
        ({"subject": "s", "relation": "r", "object": "o", "zzzz": "1"}, "zzzz", "Leave it out"),
        ({"subject": "s", "relation": "r", "object": "o", "id": "1", "name": "2"}, "name", "Both id and name"),
        ({"subject": "s", "relation": "r", "object": "o", "id": True}, "id", "Found: bool"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, line: dict[str, object], field: str, words: str) -> None:
    good = {"subject": "Eiffel Tower", "relation": "located in", "object": "Rome"}
    listed = read_facts(written(tmp_path, f"{json.dumps(good)}\n{json.dumps(line)}\n", "facts.jsonl"))
    assert facts(listed) == [TOWER]
    (bad,) = listed.bad
    assert (bad.number, bad.field) == (2, field)
    assert words in str(bad.error)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"subject": "s"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no JSON object"),
        ('"text"', "no JSON object"),
        ('{"subject": "a", "subject": "b"}', "field 'subject' twice"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, words: str) -> None:
    good = json.dumps({"subject": "Eiffel Tower", "relation": "located in", "object": "Rome"})
    listed = read_facts(written(tmp_path, f"{good}\n{line}\n{good}", "facts.jsonl"))
    assert facts(listed) == [TOWER, TOWER]
    (bad,) = listed.bad
    assert (bad.number, bad.field) == (2, None)
    assert words in str(bad.error)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \r\n", "is empty"),
        (b"subject,relation,object\n", "no line below"),
        (b"subject,relation,object\na,b,\0\n", "NUL byte in line 2, at byte 28"),
        ("subject,relation,object\nTür,in,x\n".encode("latin-1"), "not UTF-8 in line 2, at byte 25"),
        (CSV.encode("utf-16"), "NUL byte"),
        (b"subject,relation,object,subject\na,b,c,d\n", "'subject' twice"),
        (b"subject,relation,objekt\na,b,c\n", "Did you mean 'object'"),
        (b"subject,relation,object,\na,b,c,\n", "no field ''"),
        (b"subject,relation\na,b\n", "no column object"),
        (b"subject,object\na,b\n", "no column relation or prompt"),
        (b"Eiffel Tower,located in,Rome\n", "is no header"),
        (b'"subject,relation,object\n', "header"),
        (b"PK\x03\x04\x00", "NUL byte"),
        (b'[{"subject": "s"}]', "JSON list"),
    ],
)
def test_a_wrong_file_is_refused_as_a_whole(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_facts(written(tmp_path, data)) if not data.startswith(b"[") else read_facts(
            written(tmp_path, data, "f.json")
        )
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path, Path("a\0b.csv")):
        with pytest.raises(RequestError, match="cannot be read"):
            read_facts(path)
    with pytest.raises(RequestError, match="no facts"):
        read_facts([])


TEXTS = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and "{}" not in text
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=6))
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    import csv

    buffer = io.StringIO()
    csv.writer(buffer).writerows([("subject", "relation", "object"), *rows])
    path = written(tmp_path_factory.mktemp("facts"), buffer.getvalue())
    assert facts(read_facts(path)) == [Fact(*row) for row in rows]
