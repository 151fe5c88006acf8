"""Records of known_1000: facts that GPT-2 XL knows, for causal tracing (arXiv 2202.05262, section 2). As published:

    {"known_id": 0, "subject": "...", "attribute": "...", "template": "{} ...", "prediction": " ...",
     "prompt": "... the subject ...", "relation_id": "P..."}

The prompt is what GPT-2 XL was asked, and is often longer than the filled template: the prompt counts. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rompatch.edits import EditRequest
from rompatch.verify.fields import record_fields
from rompatch.verify.records import Contest
from rompatch.verify.templates import template_in

KIND = "known_1000"


@dataclass(frozen=True)
class KnownFact:
    """One record, checked.

    Args:
        case_id: its ``known_id``; the place in the file where it has none.
        subject: s, which stands in the prompt.
        attribute: the true object, which a model that knows the fact says next.
        prompt: what the model is asked, subject included.
        template: the prompt with ``{}`` in the subject's place; not the file's own ``template``.
        relation_id: Wikidata's name of the relation.
        prediction: what GPT-2 XL went on with.
    """

    case_id: int
    subject: str
    attribute: str
    prompt: str
    template: str
    relation_id: str | None = None
    prediction: str | None = None

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{KIND} record {self.case_id}"

    def request(self, target_new: str) -> EditRequest:
        """The edit of this fact to *target_new*.

        Raises:
            TargetError: *target_new* is empty or the attribute itself.
        """
        return EditRequest(self.subject, self.template, target_new, self.attribute)

    def contests(self) -> Iterator[Contest]:
        """The prompt with its attribute."""
        yield "prompt", self.prompt, (self.attribute,)

    @classmethod
    def from_json(cls, entry: Any, position: int = 0) -> KnownFact:
        """The record in a JSON object, at *position* of its file.

        Raises:
            SuiteError: naming the record (id and position) and the field.
        """
        fields = record_fields(entry, KIND, position, "known_id")
        found, subject, prompt = fields.where.record_id, fields.text("subject"), fields.text("prompt")
        return cls(
            case_id=position if found is None else found,
            subject=subject,
            attribute=fields.text("attribute"),
            prompt=prompt,
            template=template_in(fields.where, "prompt", prompt, subject),
            relation_id=fields.text_or_none("relation_id"),
            prediction=fields.text_or_none("prediction"),
        )
