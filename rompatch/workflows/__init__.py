"""One function a use case; :class:`~rompatch.workflows.store.Store` holds them together for Python callers.

Nothing here imports torch while it is imported: what lists, logs, applies and reverts must answer at once.
"""
