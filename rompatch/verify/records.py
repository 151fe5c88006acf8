"""Records of the COUNTERFACT data set (arXiv 2202.05262, section 5.1), in the schema its authors published:

    {"case_id": 0,
     "requested_rewrite": {"prompt": "... {} ...", "subject": "...",
                           "target_new": {"str": "..."}, "target_true": {"str": "..."}, "relation_id": "P..."},
     "paraphrase_prompts": ["..."], "neighborhood_prompts": ["..."],
     "attribute_prompts": ["..."], "generation_prompts": ["..."]}

The four lists may be missing (then that part is not tested); anything else that is missing or of the wrong kind is an
error that names the record and the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rompatch.edits import PLACEHOLDER, EditRequest
from rompatch.errors import RompatchError, SuiteError

Record = dict[str, Any]
"""A checked COUNTERFACT record."""

PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")


def read_json(path: Path | str) -> Any:
    """The JSON value in a UTF-8 file.

    Raises:
        SuiteError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise SuiteError(f"The suite file {str(path)!r} cannot be read.", found=problem.strerror) from problem
    except (ValueError, RecursionError) as problem:
        raise SuiteError(
            f"The suite file {str(path)!r} is not JSON.",
            expected="a COUNTERFACT record, a list of records, or a rompatch suite",
            found=problem,
        ) from problem


def load_counterfact(path: Path | str) -> list[Record]:
    """All records of a file that holds a list of them, or a single one.

    Raises:
        SuiteError: the file or one of its records cannot be used.
    """
    data = read_json(path)
    entries = data if isinstance(data, list) else [data]
    if not entries:
        raise SuiteError(f"The file {str(path)!r} holds no records.", expected="a list of COUNTERFACT records")
    return [check_record(entry, position) for position, entry in enumerate(entries)]


def check_record(entry: Any, position: int = 0) -> Record:
    """*entry* as a record, its fields checked.

    Raises:
        SuiteError: naming the record (case id or position) and the field.
    """
    name = record_name(entry, position)
    if not isinstance(entry, Mapping):
        raise _wrong(name, "record", "an object", entry)
    rewrite = entry.get("requested_rewrite")
    if not isinstance(rewrite, Mapping):
        raise _wrong(name, "requested_rewrite", "an object", rewrite)
    for field in ("prompt", "subject"):
        _require_text(name, f"requested_rewrite.{field}", rewrite.get(field))
    for field in ("target_new", "target_true"):
        target = rewrite.get(field)
        if not isinstance(target, Mapping):
            raise _wrong(name, f"requested_rewrite.{field}", 'an object {"str": "..."}', target)
        _require_text(name, f"requested_rewrite.{field}.str", target.get("str"))
    if rewrite["prompt"].count(PLACEHOLDER) != 1:
        raise _wrong(name, "requested_rewrite.prompt", "a template with one {}", rewrite["prompt"])
    for field in PROMPT_LISTS:
        prompts = entry.get(field, [])
        if not isinstance(prompts, list):
            raise _wrong(name, field, "a list of texts", prompts)
        for index, prompt in enumerate(prompts):
            _require_text(name, f"{field}[{index}]", prompt)
    return dict(entry)


def request_of(record: Mapping[str, Any]) -> EditRequest:
    """The edit request of a checked record.

    Raises:
        SuiteError: its objects are the same, or otherwise no request.
    """
    rewrite = record["requested_rewrite"]
    try:
        return EditRequest(
            subject=rewrite["subject"],
            template=rewrite["prompt"],
            target_new=rewrite["target_new"]["str"],
            target_true=rewrite["target_true"]["str"],
        )
    except RompatchError as problem:
        raise SuiteError(f"{record_name(record)} asks for an impossible edit: {problem}") from problem


def record_name(entry: Any, position: int = 0) -> str:
    """How messages name a record: by its case id, else by its position in the file."""
    case = entry.get("case_id") if isinstance(entry, Mapping) else None
    return f"COUNTERFACT record {case}" if case is not None else f"Record {position} of the file"


def _require_text(name: str, field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(name, field, "text that is not empty", value)


def _wrong(name: str, field: str, expected: str, found: object) -> SuiteError:
    return SuiteError(f"{name} has a wrong field {field!r}.", expected=expected, found=repr(found)[:80], field=field)
