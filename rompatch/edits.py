"""What a user asks for: one fact, one new object.

The words are those of the ROME paper (Meng et al. 2022, arXiv 2202.05262, section 3): a fact is a triple (subject s,
relation r, object o); the relation is a prompt template with the subject's place marked by ``{}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rompatch.errors import RequestError, SubjectError, TargetError

PLACEHOLDER = "{}"


def fill(template: str, subject: str) -> str:
    """Put *subject* in the place of ``{}``. Unlike ``str.format`` this leaves every other brace alone."""
    return template.replace(PLACEHOLDER, subject, 1)


def same_text(left: str, right: str) -> bool:
    """Whether two objects, subjects or templates are the same but for case and white space."""
    return " ".join(left.split()).casefold() == " ".join(right.split()).casefold()


@dataclass(frozen=True)
class EditRequest:
    """One edit request (s, template, o*, o^c): make the model continue ``fill(template, subject)`` with *target_new*.

    Args:
        subject: s, as it stands in the prompt, without a leading article ("Eiffel Tower").
        template: the prompt with exactly one ``{}`` ("The {} is located in").
        target_new: o*, the object that the model shall give ("Rome").
        target_true: o^c, the object that it gives now ("Paris"); optional.
        relation: the relation phrase that the user typed, if the template was chosen from it ("located in").

    Raises:
        SubjectError: the subject is empty.
        RequestError: the template has no ``{}`` or more than one.
        TargetError: an object is empty, or both objects are the same.
    """

    subject: str
    template: str
    target_new: str
    target_true: str | None = None
    relation: str | None = None

    def __post_init__(self) -> None:
        for name in ("subject", "template", "target_new", "target_true", "relation"):
            value = getattr(self, name)
            if value is None and name in ("target_true", "relation"):
                continue
            if not isinstance(value, str):
                raise RequestError(f"The {name} of an edit request must be text.", found=type(value).__name__)
        if not self.subject.strip():
            raise SubjectError("The subject is empty.", next_step='Name the thing the fact is about: "Eiffel Tower".')
        count = self.template.count(PLACEHOLDER)
        if count != 1:
            raise RequestError(
                f"The prompt template {self.template!r} must mark the subject's place once.",
                expected="exactly one {}",
                found=f"{count} of them",
                next_step='Write it like "The {} is located in".',
            )
        if not self.target_new.strip():
            raise TargetError("The new object is empty.", next_step='Say what the model shall answer: "Rome".')
        if self.target_true is not None and not self.target_true.strip():
            raise TargetError("The true object is empty.", next_step="Leave --true out, or name the present answer.")
        if self.target_true is not None and same_text(self.target_new, self.target_true):
            raise TargetError(
                f"The new object and the true object are the same: {self.target_new!r}.",
                expected="two different objects",
                next_step="Nothing needs editing if the model already says so; otherwise change one of them.",
            )

    @property
    def prompt(self) -> str:
        """p: the template with the subject in its place."""
        return fill(self.template, self.subject)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with all five fields, absent ones as null."""
        return {
            "relation": self.relation,
            "subject": self.subject,
            "target_new": self.target_new,
            "target_true": self.target_true,
            "template": self.template,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EditRequest:
        """The inverse of :meth:`to_json`.

        Raises:
            RequestError: a required field is missing.
        """
        try:
            return cls(
                subject=data["subject"],
                template=data["template"],
                target_new=data["target_new"],
                target_true=data.get("target_true"),
                relation=data.get("relation"),
            )
        except KeyError as missing:
            raise RequestError(f"The edit request has no field {missing}.", found=sorted(data)) from None
