"""Records of the COUNTERFACT data set (arXiv 2202.05262, section 5.1), in the schema its authors published:

    {"case_id": 0,
     "requested_rewrite": {"prompt": "... {} ...", "subject": "...", "relation_id": "P...",
                           "target_new": {"str": "...", "id": "Q..."}, "target_true": {"str": "...", "id": "Q..."}},
     "paraphrase_prompts": ["..."], "neighborhood_prompts": ["..."],
     "attribute_prompts": ["..."], "generation_prompts": ["..."]}

The four lists and the Wikidata ids may be missing (then that part is not tested); anything else that is missing or of
the wrong kind is an error that names the record and the field. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rompatch.edits import PLACEHOLDER, EditRequest
from rompatch.errors import RompatchError, SuiteError
from rompatch.verify.fields import Where, record_fields

KIND = "COUNTERFACT"
PROMPT_LISTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")

Contest = tuple[str, str, tuple[str, ...]]
"""A field's name, the prompt in it, and the objects that are scored after that prompt."""


@dataclass(frozen=True)
class CounterfactRecord:
    """One record, checked.

    Args:
        case_id: the data set's own number; the place in the file where it has none.
        request: subject, template, o* and o^c.
        relation_id, target_new_id, target_true_id: Wikidata's names, by which reference texts are filed.
        paraphrase_prompts: the same fact in other words.
        neighborhood_prompts: other subjects, which truly have o^c.
        attribute_prompts: other subjects, which truly have o*.
        generation_prompts: text to be continued.
    """

    case_id: int
    request: EditRequest
    relation_id: str | None = None
    target_new_id: str | None = None
    target_true_id: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{KIND} record {self.case_id}"

    @property
    def subject(self) -> str:
        """s."""
        return self.request.subject

    def contests(self) -> Iterator[Contest]:
        """Every prompt with the objects that are scored after it; none after generation prompts."""
        objects = tuple(text for text in (self.request.target_new, self.request.target_true) if text)
        yield "requested_rewrite.prompt", self.request.prompt, objects
        for field in PROMPT_LISTS:
            for index, prompt in enumerate(getattr(self, field)):
                yield f"{field}[{index}]", prompt, () if field == "generation_prompts" else objects

    @classmethod
    def from_json(cls, entry: Any, position: int = 0) -> CounterfactRecord:
        """The record in a JSON object, at *position* of its file.

        Raises:
            SuiteError: naming the record (id and position) and the field.
        """
        fields = record_fields(entry, KIND, position, "case_id")
        rewrite = fields.inner("requested_rewrite")
        template, subject = rewrite.text("prompt"), rewrite.text("subject")
        new, true = (rewrite.inner(name, 'an object {"str": "..."}') for name in ("target_new", "target_true"))
        request = _request(fields.where, subject, template, new.text("str"), true.text("str"))
        found = fields.where.record_id
        return cls(
            case_id=position if found is None else found,
            request=request,
            relation_id=rewrite.text_or_none("relation_id"),
            target_new_id=new.text_or_none("id"),
            target_true_id=true.text_or_none("id"),
            **{field: fields.texts(field) for field in PROMPT_LISTS},
        )


def request_of(entry: Any) -> EditRequest:
    """The edit request in a record's JSON object.

    Raises:
        SuiteError: as :meth:`CounterfactRecord.from_json`.
    """
    return CounterfactRecord.from_json(entry).request


def _request(where: Where, subject: str, template: str, new: str, true: str) -> EditRequest:
    if template.count(PLACEHOLDER) != 1:
        raise where.wrong("requested_rewrite.prompt", "a template with one {}", template)
    try:
        return EditRequest(subject=subject, template=template, target_new=new, target_true=true)
    except RompatchError as problem:
        raise SuiteError(
            f"{where} asks for an impossible edit: {problem}", **where.facts("requested_rewrite.target_new.str")
        ) from problem
