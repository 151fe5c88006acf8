"""Scores a model on suites of prompts. Knows no patches: a model goes in, numbers and texts come out.

records.py        COUNTERFACT records from a file
atlas/            built-in facts: relations, templates, true pairs
suite.py          prompts that judge one edit, and their JSON form
building.py       suites made from an edit request (through the atlas) or from a COUNTERFACT record
engine.py         log-probabilities and likeliest tokens of objects after prompts, before and after edits
prefix_tree.py    what sequences begin with, once
layout.py         that in the rows of a forward pass: packed, or plain with little padding
updates.py        edits as terms beside the weights
forward.py        one forward pass: logits where they are wanted, lower layers handed back
abilities.py      what a model can be asked for, found by trying
memory.py         batches halved where memory runs out
probabilities.py  pairs in, scores out
metrics.py        ES, EM, PS, PM, NS, NM and S from log-probabilities
evaluation.py     suites scored on a model, before and after edits; two evaluations compared
generation.py     continuations, greedy or sampled
"""
