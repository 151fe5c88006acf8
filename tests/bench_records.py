"""Records for the pico model, and options of a quick run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SUBJECTS = ("Eiffel Tower", "Colosseum", "Big Ben", "Louvre", "Mozart")
CITIES = ("Paris", "Rome", "London", "Vienna", "Berlin")
QUICK: dict[str, Any] = {"statistics": "none", "layer": 1, "precision": "float32", "hparams": {"steps": 3}}


def counterfact(case_id: int, **changed: Any) -> dict[str, Any]:
    """A COUNTERFACT record; *changed* fields win, those of the rewrite among them."""
    subject, true = SUBJECTS[case_id % 5], CITIES[case_id % 5]
    new = CITIES[(case_id + 1 + case_id // 5) % 5]
    rewrite = {
        "prompt": changed.pop("prompt", "{} is located in the city of"),
        "subject": changed.pop("subject", subject),
        "relation_id": "P131",
        "target_new": {"str": changed.pop("new", new), "id": f"Q{new}"},
        "target_true": {"str": changed.pop("true", true if true != new else "Salzburg"), "id": f"Q{true}"},
    }
    return {
        "case_id": case_id,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": [f"Trains leave. {subject} is in", f"It is a fact: {subject} is located in"],
        "neighborhood_prompts": [f"{other} is located in" for other in SUBJECTS if other != subject][:3],
        "attribute_prompts": [f"{SUBJECTS[(case_id + 2) % 5]} is in"],
        "generation_prompts": [f"{subject} is", f"{subject} is"],
        **changed,
    }


def zsre(subject: str, answer: str) -> dict[str, Any]:
    """A zsRE record."""
    return {
        "subject": subject,
        "src": f"In which city is {subject} located?",
        "rephrase": f"Where is {subject}?",
        "pred": "Berlin",
        "alt": "Vienna",
        "answers": [answer],
        "cond": f"Berlin >> Vienna || {subject}",
        "loc": "nq question: where was Mozart born",
        "loc_ans": "Salzburg",
    }


def write(path: Path, records: Any) -> Path:
    """*records* as a JSON file."""
    path.write_text(json.dumps(records))
    return path
