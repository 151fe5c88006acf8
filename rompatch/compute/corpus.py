"""Text for key statistics: a file, a folder of files, or a hub data set, read as a stream of documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rompatch.default_model import file_sha256
from rompatch.errors import StatisticsError
from rompatch.tokens import document_separator, document_start_ids

HUB_PREFIX = "hub:"
_TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
CUTTING = 1
"""Version of the code below that cuts text into documents and windows. Raise it whenever the windows of some text
change: it is part of a corpus's id from 2 on, and 1 keeps the ids that patches have recorded."""
_DOCUMENT_CHARS = 20_000
"""A file without marked documents is read in pieces of about this many characters, cut at line ends."""


@dataclass(frozen=True)
class Corpus:
    """Where text comes from: ``name`` for people, ``id`` for cache keys: sha256 of the content, or of a hub data set's
    name and ``revision``. ``stamps`` are sizes and times of the files as they were hashed."""

    name: str
    id: str
    paths: tuple[Path, ...] = ()
    revision: str | None = None
    stamps: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def documents(self) -> Iterator[str]:
        """The documents, in a fixed order."""
        if self.name.startswith(HUB_PREFIX):
            yield from _hub_documents(self.name, self.revision)
        for path in self.paths:
            yield from _file_documents(path)

    def check_unchanged(self) -> None:
        """Look whether the files are still those that ``id`` was taken from.

        Raises:
            StatisticsError: one of them was changed or removed.
        """
        for path, stamp in zip(self.paths, self.stamps, strict=True):
            if _stamp(path) != stamp:
                raise StatisticsError(
                    f"The text file {path} was changed while it was read.",
                    expected="the same text from the first token to the last",
                    found="another size or time of change",
                    next_step="Give the same command again when nothing writes to it.",
                )


def open_corpus(spec: str) -> Corpus:
    """A corpus from what ``--corpus`` takes: a file, a folder, or ``hub:NAME[,CONFIG][,SPLIT]``.

    Raises:
        StatisticsError: nothing readable there.
    """
    if spec.startswith(HUB_PREFIX):
        revision = _hub_revision(spec)
        return Corpus(spec, _versioned(hashlib.sha256(f"{spec}@{revision}".encode())), revision=revision)
    path = Path(spec)
    paths = [path]
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.suffix in _TEXT_SUFFIXES and p.is_file())
    if not paths or not path.exists():
        raise StatisticsError(
            f"There is no text to read at {spec!r}.",
            expected=f"a text file, a folder with {', '.join(_TEXT_SUFFIXES)} files, or {HUB_PREFIX}NAME",
            found="an empty folder" if path.is_dir() else "no such file",
            next_step="Check the path.",
        )
    digest = hashlib.sha256()
    stamps = tuple(_stamp(part) for part in paths)
    for part in paths:
        try:
            digest.update(bytes.fromhex(file_sha256(part)))
        except OSError as problem:
            raise _unreadable(part, problem) from problem
    return Corpus(name=path.resolve().name, id=_versioned(digest), paths=tuple(paths), stamps=stamps)


def _versioned(digest: hashlib._Hash) -> str:
    return digest.hexdigest() + (f"-cut-{CUTTING}" if CUTTING > 1 else "")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # reading it says why
        return (-1, -1)
    return (found.st_size, found.st_mtime_ns)


def windows(tokenizer: PreTrainedTokenizerBase, corpus: Corpus, length: int) -> Iterator[list[int]]:
    """The corpus as token windows of *length*, each starting with the document start, documents packed without
    padding. Only the last window may be shorter.

    Raises:
        StatisticsError: no room for text in a window, or the text cannot be read.
    """
    start = document_start_ids(tokenizer, True)
    separator = document_separator(tokenizer)
    body = length - len(start)
    if body < 1:
        raise StatisticsError(
            f"A window of {length} tokens holds no text.", expected=f"at least {len(start) + 1} tokens"
        )
    pending: list[int] = []
    for document in corpus.documents():
        ids = tokenizer(document, add_special_tokens=False, verbose=False).input_ids
        pending += [*([separator] if pending else []), *ids]
        whole = len(pending) // body * body
        yield from ([*start, *pending[i : i + body]] for i in range(0, whole, body))
        pending = pending[whole:]
    if pending:
        yield [*start, *pending]


def _file_documents(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as lines:
            if path.suffix == ".jsonl":
                yield from (_text_of(json.loads(line)) for line in lines if line.strip())
                return
            yield from _pieces(lines)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as problem:
        raise _unreadable(path, problem) from problem


def _text_of(row: object) -> str:
    text = row["text"] if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise TypeError('a line without a "text" that is text')
    return text


def _unreadable(path: Path, problem: Exception) -> StatisticsError:
    return StatisticsError(
        f"The text file {path} cannot be read.",
        expected='UTF-8 text, or JSON lines with a "text" field',
        found=f"{type(problem).__name__}: {problem}",
        next_step="Convert it to UTF-8, or name another file.",
    )


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """Documents of a plain text file: a line "= Title =" starts one (WikiText's mark; " = = Section = = " does not),
    and none grows endless."""
    piece: list[str] = []
    size = 0
    for line in lines:
        title = re.fullmatch(r" ?= [^=].* = *\n?", line)
        if piece and (title or size > _DOCUMENT_CHARS):
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if "".join(piece).strip():
        yield "".join(piece)


def _hub_revision(spec: str) -> str:
    """The commit that a hub data set is at now: its name alone would serve stale statistics after an update."""
    if find_spec("datasets") is None:
        raise StatisticsError(
            f"The corpus {spec!r} is a hub data set, which needs the datasets library.",
            next_step="pip install datasets, or give --corpus a text file.",
        )
    from huggingface_hub import HfApi

    name = spec.removeprefix(HUB_PREFIX).split(",")[0]
    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as problem:
        raise _hub_unreadable(name, problem) from problem


def _hub_documents(spec: str, revision: str | None) -> Iterator[str]:
    from datasets import load_dataset

    name, *rest = spec.removeprefix(HUB_PREFIX).split(",")
    config = rest[0] if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        for row in load_dataset(name, config, split=split, streaming=True, revision=revision):
            yield str(row["text"])
    except Exception as problem:
        raise _hub_unreadable(name, problem) from problem


def _hub_unreadable(name: str, problem: Exception) -> StatisticsError:
    return StatisticsError(
        f"The hub data set {name!r} cannot be read.",
        found=f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}",
        next_step="Check the name and the network, or give --corpus a text file.",
    )
