"""Completions to judgments, judgments to preference pairs."""
