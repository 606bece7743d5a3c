"""Recipes: one file a distillation method, beside its settings, and the table that finds one by name."""
