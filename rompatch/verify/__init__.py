"""Scores a model on suites of prompts. Knows no patches: a model goes in, numbers and texts come out.

records.py        COUNTERFACT records from a file
atlas/            built-in facts: relations, templates, true pairs
suite.py          prompts that judge one edit, and their JSON form
building.py       suites made from an edit request (through the atlas) or from a COUNTERFACT record
probabilities.py  log-probabilities of objects after prompts, batched
metrics.py        ES, EM, PS, PM, NS, NM and S from log-probabilities
evaluation.py     a suite scored on a model; two evaluations compared
generation.py     continuations, greedy or sampled
"""
