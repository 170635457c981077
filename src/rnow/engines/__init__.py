"""Engines sample from a model and score token ids: one interface, two roles (student, teacher)."""
