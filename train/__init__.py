"""Preference pairs → a better model. Imports nothing: each command imports what it needs.

config.py  settings of a run        data.py       pairs as token ids
dpo.py     the stage                reference.py  the reference's log-probabilities, audited
output.py  the output directory     callbacks.py  metrics, checkpoints, stopping
models.py  loading and saving       cli.py        `gavel train`
"""
