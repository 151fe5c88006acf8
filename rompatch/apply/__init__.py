"""Puts patches into weights: the stack's algebra (solve), a live model (session), a checkpoint folder (bake)."""
