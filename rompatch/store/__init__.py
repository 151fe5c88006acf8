"""What was done and what is in force: the ledger (SQL) and the patch files beside it. Nothing here loads torch."""
