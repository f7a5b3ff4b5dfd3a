"""Weights from outside: where they come from, where they lie, and how a file is read without running what it may contain."""

from percepta.weights.reading import check_tar, check_zip, read_weights
from percepta.weights.table import ENV, TABLE, Weights, find_weights, has_weights, hash_of_file, known_weights, weight_folders

__all__ = [
    "ENV",
    "TABLE",
    "Weights",
    "check_tar",
    "check_zip",
    "find_weights",
    "has_weights",
    "hash_of_file",
    "known_weights",
    "read_weights",
    "weight_folders",
]
