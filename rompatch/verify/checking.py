"""Whether a record can be scored by a given model: what only its tokenizer and its context length can tell."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rompatch.errors import SuiteError, TargetError
from rompatch.tokens import encode_pair, encode_prompt
from rompatch.verify.reading import Record


def check_record(
    record: Record, tokenizer: PreTrainedTokenizerBase, context_length: int | None, *, document_start: bool = True
) -> None:
    """Refuse a record that this model could not score.

    Args:
        record: a record of any data set.
        tokenizer: the model's.
        context_length: the most tokens that the model takes; None: no limit.
        document_start: as for scoring.

    Raises:
        SuiteError: a prompt does not fit into the context, an object tokenises to nothing, or two objects that compete
            after the same prompt tokenise alike. Names the record and the field.
    """
    for field, prompt, objects in record.contests():
        if not objects:
            # Something must be written after it: at least one token.
            _check_length(record, field, len(encode_prompt(tokenizer, prompt, document_start)) + 1, context_length)
        seen: dict[tuple[int, ...], str] = {}
        for target in objects:
            try:
                pair = encode_pair(tokenizer, prompt, target, document_start)
            except TargetError as problem:
                raise _refused(record, field, f"its object {target!r} tokenises to nothing", "a token") from problem
            # The last token of the object is never fed back.
            _check_length(record, field, len(pair.prompt_ids) + len(pair.target_ids) - 1, context_length)
            other = seen.setdefault(tuple(pair.target_ids), target)
            if other != target:
                what = f"its objects {other!r} and {target!r} tokenise alike"
                raise _refused(record, field, what, "objects that differ in tokens", found=pair.target_ids)


def _check_length(record: Record, field: str, n_tokens: int, context_length: int | None) -> None:
    if context_length is not None and n_tokens > context_length:
        expected = f"at most {context_length} tokens, the object included"
        raise _refused(record, field, "its prompt is longer than the model's context", expected, found=n_tokens)


def _refused(record: Record, field: str, what: str, expected: str, found: object = None) -> SuiteError:
    return SuiteError(
        f"{record.name}, field {field!r}: {what}.",
        expected=expected,
        found=found,
        next_step="Leave the record out, or use another model.",
        field=field,
        record_id=record.case_id,
    )
