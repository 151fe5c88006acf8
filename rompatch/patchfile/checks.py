"""What a patch's header may say: limits, types and canonical spelling, checked before anything is used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from rompatch.errors import PatchFileError, RompatchError
from rompatch.patch import (
    ADAPTER_VERSION,
    FORMAT_VERSION,
    SOLVED_VERSION,
    PatchHeader,
    StatisticsRef,
    canonical_json,
)

MAX_FILE_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 24
MAX_SITES = 1024
MAX_KEYS = 4096
MAX_WIDTH = 1 << 20
MAX_TEXT = 1 << 16
"""Limits (docs/format.md, "Limits"): bytes, bytes, sites, keys or rank of a site, d_in or d_out, characters."""

_MAX_DEPTH = 32
_HEX64 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Copy it again from where it came, or compute the patch anew with `rompatch create`."


class DamageError(Exception):
    """What is wrong with a file whose name the raiser does not know; :func:`naming` adds it."""

    def __init__(self, problem: str, expected: object = None, found: object = None, next_step: str = _AGAIN) -> None:
        super().__init__(problem)
        self.problem, self.expected, self.found, self.next_step = problem, expected, found, next_step


def require(fact: bool, problem: str, expected: object = None, found: object = None) -> None:
    """Raise :class:`DamageError` with *problem* unless *fact* holds."""
    if not fact:
        raise DamageError(problem, expected, found)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Turn every way of failing inside into a ``PatchFileError`` that names the file."""
    try:
        yield
    except DamageError as error:
        raise PatchFileError(
            f"The patch file {name} cannot be used: {error.problem}.",
            expected=error.expected,
            found=error.found,
            next_step=error.next_step,
            file=name,
        ) from None
    except OSError as error:
        text = error.strerror or str(error)
        raise PatchFileError(
            f"The patch file {name} cannot be read: {text}.",
            next_step="Check the path and its permissions.",
            file=name,
        ) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    require(len(keys) == len(pairs), "a key occurs twice in its JSON header")
    return keys


def _refuse_constant(text: str) -> NoReturn:
    raise DamageError(f"its header contains {text}")


def parse_json(text: str, what: str) -> dict[str, Any]:
    """The JSON object in *text*: no key twice, no NaN or infinity; *what* names it in errors."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{what} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise DamageError(f"{what} is not a JSON object", found=type(value).__name__)
    return value


def spell(header: PatchHeader) -> str:
    """The canonical JSON of *header*, proven to be UTF-8."""
    try:
        text = canonical_json(header.to_json())
        text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise DamageError(f"its header is not plain JSON ({error})") from None
    return text


def check_values(value: Any, depth: int = 0) -> None:
    """Refuse texts, numbers and nesting beyond the limits, anywhere in the header."""
    require(depth <= _MAX_DEPTH, "its header is nested too deeply", f"at most {_MAX_DEPTH} levels")
    if isinstance(value, str):
        require(len(value) <= MAX_TEXT, "a text in its header is too long", f"{MAX_TEXT} characters", len(value))
    elif isinstance(value, int):
        require(-(1 << 63) <= value < 1 << 63, "a whole number in its header does not fit 64 bits")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            require(type(key) is str, "a key in its header is not text")
            check_values(key, depth + 1)
            check_values(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_values(item, depth + 1)


def check_types(record: object, fields: Mapping[str, type], what: str) -> None:
    """Refuse a field of *record* whose type is not exactly the one in *fields*; *what* names the record."""
    for name, kind in fields.items():
        value = getattr(record, name)
        require(type(value) is kind, f"{what}.{name} has the wrong type", kind.__name__, type(value).__name__)


_BASE = dict.fromkeys(("source", "model_type", "config_hash", "tokenizer_hash", "dtype"), str)
_SITE = {
    **dict.fromkeys(("layer", "d_out", "d_in"), int),
    **dict.fromkeys(("parameter", "dtype", "sha256"), str),
    "transposed": bool,
}


def check_header(header: PatchHeader) -> None:
    """The types and limits that the dataclasses do not hold themselves."""
    check_values(header.to_json())
    _check_version(header)
    check_types(header, {"method": str, "seed": int, "document_start": bool}, "header")
    check_types(header.base, _BASE, "base")
    if header.statistics is not None:
        _check_statistics(header.statistics, "statistics")
    _check_more_statistics(header)
    require(all(type(text) is str for text in header.versions.values()), "a library version is not text")
    require(
        1 <= len(header.sites) <= MAX_SITES, "its number of sites is absurd", f"1 to {MAX_SITES}", len(header.sites)
    )
    for index, site in enumerate(header.sites):
        what = f"sites[{index}]"
        check_types(site, _SITE, what)
        require(site.layer >= 0, f"{what}.layer is negative")
        for name in ("d_in", "d_out"):
            size = getattr(site, name)
            require(1 <= size <= MAX_WIDTH, f"{what}.{name} is absurd", f"1 to {MAX_WIDTH}", size)
        require(bool(_HEX64.fullmatch(site.sha256)), f"{what}.sha256 is not 64 lower-case hex digits")
    names = {site.parameter for site in header.sites}
    require(len(names) == len(header.sites), "two of its sites are the same parameter")


def _check_statistics(statistics: StatisticsRef, what: str) -> None:
    check_types(statistics, {"id": str, "tokens": int, "corpus": str}, what)
    require(type(statistics.ridge) in (int, float), f"{what}.ridge is not a number")


def _check_more_statistics(header: PatchHeader) -> None:
    """Only format 3 has them: one a site beyond the first, where the first has some."""
    solved = header.format_version == SOLVED_VERSION and header.statistics is not None
    wanted = len(header.sites) - 1 if solved else 0
    found = len(header.more_statistics)
    require(found == wanted, "it does not have statistics for each of its sites", wanted, found)
    for index, statistics in enumerate(header.more_statistics):
        _check_statistics(statistics, f"more_statistics[{index}]")


def _check_version(header: PatchHeader) -> None:
    """Formats 1 and 3 have a request, format 2 a title in its place."""
    version, known = header.format_version, (FORMAT_VERSION, ADAPTER_VERSION, SOLVED_VERSION)
    require(version in known, "its format version is unknown", " or ".join(map(str, known)), version)
    titled = version == ADAPTER_VERSION
    require((header.request is None) == titled, "a patch of format 1 or 3 has a request, one of format 2 has none")
    require((header.title is not None) == titled, "a patch of format 2 has a title, one of format 1 or 3 has none")
    if header.title is not None:
        require(type(header.title) is str and bool(header.title.strip()), "its title is no text, or empty")


def header_from(metadata: str) -> PatchHeader:
    """Header from the metadata string, which must be in canonical spelling."""
    data = parse_json(metadata, "its metadata")
    version = data.get("format_version")
    if type(version) is int and version > SOLVED_VERSION:
        raise DamageError(
            f"its format version is {version}, newer than this rompatch reads",
            expected=f"at most {SOLVED_VERSION}",
            next_step="Upgrade rompatch: `pip install --upgrade rompatch`.",
        )
    try:
        check_values(data)
        header = PatchHeader.from_json(data)
    except KeyError as missing:
        raise DamageError(f"its metadata has no field {missing}") from None
    except (TypeError, ValueError, AttributeError, OverflowError, RompatchError) as error:
        raise DamageError(f"its metadata does not describe a patch ({error})") from None
    check_header(header)
    require(spell(header) == metadata, "its metadata is not in canonical spelling, or has unknown fields")
    return header
