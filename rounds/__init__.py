"""Rounds of sampling, judging, pairing and training."""
