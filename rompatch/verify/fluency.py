"""Fluency GE (arXiv 2202.05262, section 5.2): generation entropy, low where an edited model repeats itself. Pure.

    GE = 1/3 H(bigrams) + 2/3 H(trigrams),   H(f) = -sum_k f(k) log2 f(k)

over the word n-gram frequencies f of one text, in bits; the mean over texts. (The authors' code averages the two
entropies after weights 2/3 and 4/3, which is the same.) Tables show it times 100.

Differences from the authors' code:
1. Words come from a regular expression (runs of letters and digits, with an inner apostrophe; any other visible
   character by itself) and not from NLTK's Treebank tokeniser, which splits "don't" in two and needs a download.
2. What is scored is what the caller hands in. The authors score prompt and continuation together, 100 tokens long.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WEIGHTS = {2: 1 / 3, 3: 2 / 3}
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """The words and punctuation marks of *text*, case kept."""
    return _WORD.findall(text)


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Entropy in bits of the *n*-grams of *tokens*; 0 for one that is the only one, and where there is none."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = sum(counts.values())
    return abs(math.fsum(count / total * math.log2(count / total) for count in counts.values()))


def generation_entropy(text: str) -> float:
    """GE of one text, in bits. A text of fewer than three words repeats nothing and says nothing: its entropy is 0,
    as in the authors' code.
    """
    tokens = words(text)
    return math.fsum(weight * ngram_entropy(tokens, n) for n, weight in _WEIGHTS.items())


def fluency(texts: Sequence[str]) -> float | None:
    """Mean GE over *texts*, in bits; None (not measured) if there are none."""
    return math.fsum(map(generation_entropy, texts)) / len(texts) if texts else None
