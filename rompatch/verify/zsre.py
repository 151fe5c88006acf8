"""Records of zsRE question answering (Levy et al. 2017, arXiv 1706.04115) in the form of MEND's evaluation split
(arXiv 2110.11309), which the ROME paper evaluates on (section 5.1):

    {"subject": "...", "src": "a question about the subject?", "rephrase": "the question in other words?",
     "pred": "...", "alt": "...", "answers": ["..."], "cond": "pred >> alt || src",
     "loc": "nq question: another question", "loc_ans": "its answer"}

Records have no id: their place in the file is their id. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rompatch.edits import EditRequest
from rompatch.verify.fields import record_fields
from rompatch.verify.records import Contest
from rompatch.verify.templates import template_in

KIND = "zsRE"

Taught = Literal["answer", "alternative"]
"""What an edit makes the model say: the first true answer (ROME's paper) or ``alt`` (MEND, EasyEdit)."""


@dataclass(frozen=True)
class ZsreRecord:
    """One record, checked.

    Args:
        case_id: its place in the file.
        subject: s, which stands in the question.
        question: ``src``; ``template`` is the same with ``{}`` in the subject's place.
        rephrase: the question in other words.
        answers: the true answers; the ROME paper's edits teach the first.
        alternative: ``alt``, a wrong answer; MEND and EasyEdit teach this one.
        prediction: ``pred``, what MEND's own base model answered.
        locality_question, locality_answer: ``loc`` and ``loc_ans``, an unrelated question.
        condition: ``cond``, the edit as one line.
    """

    case_id: int
    subject: str
    question: str
    template: str
    rephrase: str
    answers: tuple[str, ...]
    alternative: str
    prediction: str
    locality_question: str
    locality_answer: str
    condition: str

    @property
    def name(self) -> str:
        """How people call it."""
        return f"{KIND} record {self.case_id}"

    @property
    def locality_prompt(self) -> str:
        """The unrelated question as the ROME paper's evaluation asks it: ``loc`` with a question mark."""
        return self.locality_question.rstrip().removesuffix("?") + "?"

    def request(self, teach: Taught = "answer") -> EditRequest:
        """The edit that makes the model give the first true answer (as the ROME paper does) or ``alt`` (as EasyEdit
        does). There is no true object to compare with: success is counted in exact tokens.
        """
        return EditRequest(self.subject, self.template, self.answers[0] if teach == "answer" else self.alternative)

    def contests(self) -> Iterator[Contest]:
        """The question and its rephrasing with both objects that may be taught, the unrelated one with its answer.
        Each object by itself: none of them competes with another.
        """
        for target in (self.answers[0], self.alternative):
            yield "src", self.question, (target,)
            yield "rephrase", self.rephrase, (target,)
        yield "loc", self.locality_prompt, (self.locality_answer,)

    @classmethod
    def from_json(cls, entry: Any, position: int = 0) -> ZsreRecord:
        """The record in a JSON object, at *position* of its file.

        Raises:
            SuiteError: naming the record and the field.
        """
        fields = record_fields(entry, KIND, position)
        subject, question = fields.text("subject"), fields.text("src")
        return cls(
            case_id=position,
            subject=subject,
            question=question,
            template=template_in(fields.where, "src", question, subject),
            rephrase=fields.text("rephrase"),
            answers=fields.texts("answers", least=1),
            alternative=fields.text("alt"),
            prediction=fields.text("pred"),
            locality_question=fields.text("loc"),
            locality_answer=fields.text("loc_ans"),
            condition=fields.text("cond"),
        )
