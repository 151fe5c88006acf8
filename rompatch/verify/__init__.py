"""Scores a model on suites of prompts. Knows no patches: a model goes in, numbers and texts come out.

dataset.py        a data set by name: file, folder, alias or web address
download.py       one file into the cache, whole or not at all
reading.py        files of records: strict, or good ones and problems
records.py        COUNTERFACT records; known.py and zsre.py those of the other data sets
fields.py         a record's fields, every fault named; jsonfile.py, templates.py: the same for files and prompts
checking.py       whether a model can score a record
atlas/            built-in facts: relations, templates, true pairs
suite.py          prompts that judge one edit, and their JSON form
building.py       suites made from an edit request (through the atlas) or from a record
engine.py         log-probabilities and likeliest tokens of objects after prompts, before and after edits
prefix_tree.py    what sequences begin with, once
layout.py         that in the rows of a forward pass: packed, or plain with little padding
updates.py        edits as terms beside the weights
forward.py        one forward pass: logits where they are wanted, lower layers handed back
abilities.py      what a model can be asked for, found by trying
memory.py         batches halved where memory runs out
probabilities.py  pairs in, scores out
metrics.py        ES, EM, PS, PM, NS, NM and S from log-probabilities
argmax.py         exact success: likeliest tokens against the object's; exact.py: that of two evaluations
intervals.py      means with confidence intervals, paired differences
fluency.py        GE; consistency.py RS; texts.py the files of texts they need
perplexity.py     perplexity of texts; essence
drift.py          what edits do to text that is not about them
evaluation.py     suites scored on a model, before and after edits; two evaluations compared
generation.py     continuations, greedy or sampled
"""
