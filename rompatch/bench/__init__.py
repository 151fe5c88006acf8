"""Benchmarks: every record of a file edited alone, scored before and after, and forgotten; what came of it compared.

tasks.py     records into edit requests and suites; which of them a run is about (limit, shard)
running.py   patches computed and scored in batches, one outcome a record
texts.py     what is measured on texts that the edited model writes or reads
claims.py    which records a living process is at work on
tables.py    results into the paper's Table 4: means with intervals, paired differences
markup.py    such tables as text, Markdown and CSV
failures.py  the prompts that fail after an edit, worst records first
"""
