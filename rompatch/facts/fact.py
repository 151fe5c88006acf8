"""One fact that shall change, as a person says it: before a model has chosen the wording of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rompatch.edits import PLACEHOLDER, EditRequest, same_text
from rompatch.errors import RequestError


@dataclass(frozen=True)
class Fact:
    """What an edit request is made of.

    Args:
        subject: s ("Eiffel Tower").
        relation: a phrase ("located in") or a template with ``{}``; may be empty where there is a *prompt*.
        target: o*, the new object ("Rome").
        true: o^c, the object that is true now; None: asked of the atlas, then of the model.
        prompt: the template itself, which wins over the relation.
        message: why, for the ledger; None: that of the whole job, as for the next two.
        source: where the fact comes from.
        expires: the day (``YYYY-MM-DD``) from which on it may no longer hold.
        name: what the person calls it; shown in messages, kept nowhere.
    """

    subject: str
    relation: str
    target: str
    true: str | None = None
    prompt: str | None = None
    message: str | None = None
    source: str | None = None
    expires: str | None = None
    name: str | None = None

    @property
    def wording(self) -> str:
        """What the prompt comes from: the template where one was given, else the relation."""
        return self.prompt or self.relation

    @property
    def phrase(self) -> str | None:
        """The relation phrase of which the model chooses a wording; None where the template itself was given."""
        return self.relation if self.prompt is None and PLACEHOLDER not in self.relation else None

    @property
    def label(self) -> str:
        """How messages name it: ``Eiffel Tower -> Rome``."""
        return f"{self.subject} -> {self.target}"

    def check(self) -> None:
        """What can be refused before a model is loaded.

        Raises:
            SubjectError, TargetError, RequestError: it is no edit request; ``field`` says where.
        """
        _checked("subject", lambda: EditRequest(self.subject, PLACEHOLDER, "x"))
        _checked("object", lambda: EditRequest(self.subject, PLACEHOLDER, self.target))
        _checked("true", lambda: EditRequest(self.subject, PLACEHOLDER, self.target, self.true))
        if self.prompt is None:
            _checked("relation", self._check_relation)
        else:
            _checked("prompt", self._check_prompt)

    def _check_relation(self) -> None:
        if not self.relation.strip():
            raise RequestError(
                "The relation is empty.",
                next_step='Say what the fact is about: "located in", or "The {} is located in".',
            )
        if PLACEHOLDER in self.relation:
            EditRequest(self.subject, self.relation, self.target)

    def _check_prompt(self) -> None:
        prompt = self.prompt or ""
        if PLACEHOLDER not in prompt and self.subject in prompt:
            raise RequestError(
                f"The prompt {prompt!r} names the subject itself.",
                expected="{} in its place",
                next_step=f"--prompt {prompt.replace(self.subject, PLACEHOLDER, 1)!r}",
            )
        EditRequest(self.subject, prompt, self.target)


def same_question(one: Fact, other: Fact) -> bool:
    """Whether both ask for the same subject in the same words, whatever the object."""
    return same_text(one.subject, other.subject) and same_text(one.wording, other.wording)


def _checked(field: str, check: Callable[[], object]) -> None:
    try:
        check()
    except RequestError as problem:
        problem.facts["field"] = field
        raise
