"""A template from a prompt that names its subject. No torch here."""

from __future__ import annotations

import re

from rompatch.edits import PLACEHOLDER
from rompatch.verify.fields import Where


def template_in(where: Where, field: str, prompt: str, subject: str) -> str:
    """*prompt* with ``{}`` in the subject's place: where it stands as whole words first, else where it first stands.

    Raises:
        SuiteError: the subject is not in the prompt, or the prompt has a ``{}`` of its own.
    """
    if PLACEHOLDER in prompt:
        raise where.wrong(field, "a prompt without {}", prompt)
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = whole.start() if whole else prompt.find(subject)
    if start < 0:
        raise where.wrong(field, f"a prompt that contains the subject {subject!r}", prompt)
    return prompt[:start] + PLACEHOLDER + prompt[start + len(subject) :]
