"""Adapters that other programs trained, read as patches without keys."""
