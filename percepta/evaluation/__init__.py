"""Evaluation: features -> statistics -> value, every metric in one pass, with its protocol beside it."""
