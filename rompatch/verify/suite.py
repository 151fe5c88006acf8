"""A suite: the prompts that judge one edit, as a value, and its JSON form. No torch here.

The JSON form (version 1), as ``--suite FILE`` takes it and :meth:`Suite.to_json` writes it:

    {"rompatch_suite": 1,
     "name": "Eiffel Tower: located in -> Rome",        what is judged, for people
     "source": "atlas:located_in_city",                 where the prompts come from
     "untested": ["..."],                               in words: what is not tested, and why (optional)
     "prompts": [{"kind": "rewrite",                    rewrite | paraphrase | neighbourhood | attribute | generation
                  "text": "The Eiffel Tower is located in",
                  "target_new": "Rome",                 o*
                  "target_true": "Paris"}]}             what is true for this prompt's subject; null if not known
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from rompatch.errors import SuiteError

Kind = Literal["rewrite", "paraphrase", "neighbourhood", "attribute", "generation"]
KINDS: tuple[str, ...] = get_args(Kind)
SUITE_VERSION = 1


@dataclass(frozen=True)
class Prompt:
    """One prompt of a suite and the two objects that compete after it.

    Args:
        kind: what it tests. rewrite: the edited prompt itself; paraphrase: the same fact in other words;
            neighbourhood: another subject that must keep its object; attribute: another subject that truly has o*;
            generation: text to be continued, not scored.
        text: the prompt; it ends right before the object.
        target_new: o*.
        target_true: the object that is true without the edit; None when nobody said (then it cannot be scored).
    """

    kind: Kind
    text: str
    target_new: str
    target_true: str | None

    def to_json(self) -> dict[str, str | None]:
        """The prompt as one JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class Suite:
    """The prompts that judge one edit. ``untested`` says in words what they cannot judge, and why."""

    name: str
    source: str
    prompts: tuple[Prompt, ...]
    untested: tuple[str, ...] = ()

    def of_kind(self, kind: Kind) -> tuple[Prompt, ...]:
        """The prompts of one kind, in order."""
        return tuple(prompt for prompt in self.prompts if prompt.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """The JSON form in the module's docstring."""
        return {
            "rompatch_suite": SUITE_VERSION,
            "name": self.name,
            "source": self.source,
            "untested": list(self.untested),
            "prompts": [prompt.to_json() for prompt in self.prompts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Suite:
        """The inverse of :meth:`to_json`.

        Raises:
            SuiteError: the version is unknown, or a field is missing or wrong; the message names it.
        """
        version = data.get("rompatch_suite")
        if version != SUITE_VERSION:
            raise SuiteError(
                "The suite has a form that this rompatch does not read.",
                expected=f'"rompatch_suite": {SUITE_VERSION}',
                found=version,
            )
        prompts, untested = data.get("prompts"), data.get("untested", [])
        if not isinstance(prompts, list) or not prompts:
            raise SuiteError("The suite has no prompts.", expected="a list with at least one prompt in 'prompts'")
        if not isinstance(untested, list):
            raise _wrong_field("the suite", "untested", "a list of texts", untested)
        return cls(
            name=_text(data, "name", "the suite"),
            source=_text(data, "source", "the suite"),
            prompts=tuple(_prompt(entry, f"prompt {index}") for index, entry in enumerate(prompts)),
            untested=tuple(str(note) for note in untested),
        )


def _prompt(entry: Any, where: str) -> Prompt:
    if not isinstance(entry, Mapping):
        raise _wrong_field(where, "", "an object with kind, text, target_new and target_true", entry)
    kind = _text(entry, "kind", where)
    if kind not in KINDS:
        raise _wrong_field(where, "kind", "one of " + ", ".join(KINDS), kind)
    true = entry.get("target_true")
    return Prompt(
        kind=cast(Kind, kind),
        text=_text(entry, "text", where),
        target_new=_text(entry, "target_new", where),
        target_true=None if true is None else _text(entry, "target_true", where),
    )


def _text(data: Mapping[str, Any], field: str, where: str) -> str:
    value = data.get(field)
    if not isinstance(value, str) or not value.strip():
        raise _wrong_field(where, field, "text that is not empty", value)
    return value


def _wrong_field(where: str, field: str, expected: str, found: object) -> SuiteError:
    what = f"{where} has a wrong field {field!r}" if field else f"{where} is not usable"
    return SuiteError(f"In the suite file, {what}.", expected=expected, found=repr(found)[:80])
