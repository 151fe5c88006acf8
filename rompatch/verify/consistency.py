"""Consistency RS (arXiv 2202.05262, section 5.2): cosine of unigram TF-IDF vectors, generated against reference texts.

Reference texts are about subjects that truly have o*: an edited model that took the new fact in writes about the same
things. The vectors are those of scikit-learn's TfidfVectorizer with its defaults, as in the authors' code; inverse
document frequencies come from all texts of the file that the user names (the authors': from all of their snippets).

Difference from the authors' code: texts without any word of the vocabulary have cosine 0, not NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rompatch.errors import SuiteError


class TfIdf:
    """Unigram TF-IDF vectors, fitted on documents.

    Raises:
        SuiteError: scikit-learn is not installed, or the documents have no words.
    """

    def __init__(self, documents: Iterable[str]) -> None:
        vectorizer = _vectorizer()
        try:
            vectorizer.fit(documents)
        except ValueError as problem:
            raise SuiteError(
                "The reference texts have no words to compare with.",
                expected="texts with words of two letters or more",
                found=problem,
                next_step="Name a file with ordinary text.",
            ) from problem
        self._vectorizer = vectorizer

    def cosine(self, left: str, right: str) -> float:
        """Between 0 (no word of the vocabulary in common) and 1."""
        vectors = self._vectorizer.transform([left, right])  # rows have unit length, or are 0
        return float(min(1.0, (vectors[0] @ vectors[1].T).sum()))

    def consistency(self, generated: Sequence[str], references: Sequence[str]) -> float | None:
        """RS of one record: all generated texts as one against all reference texts as one; None (not measured) where
        there are no texts on one side.
        """
        if not generated or not references:
            return None
        return self.cosine(" ".join(generated), " ".join(references))


def _vectorizer() -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as problem:
        raise SuiteError(
            "Consistency (RS) needs scikit-learn, which is not installed.",
            found=problem,
            next_step="pip install rompatch[bench], or leave the reference texts out.",
        ) from problem
    return TfidfVectorizer()
