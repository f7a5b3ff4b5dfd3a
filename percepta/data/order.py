"""Which sample stands at which place: pure functions of (seed, place), so that order survives resume, ranks and workers.

The training stream is endless. The `ordinal` of a sample is its place in it; epoch = ordinal // n, and each epoch is a
permutation keyed by (seed, epoch). The numbers come from a counter-based hash (splitmix64, Steele et al. 2014), a few
nanoseconds each in numpy and the same on every platform and version, which no library generator promises for its permutations.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from percepta.rng import mix

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed(key: int, counters: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """64 random bits per counter, an independent sequence for each key."""
    z = np.uint64(key) + (counters + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, name: str, places: Sequence[int] | np.ndarray) -> Float64[np.ndarray, " n"]:
    """A number in [0, 1) per place; each `name` is a source of its own."""
    bits = hashed(mix(seed, "data", name), np.asarray(places, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=8)
def permutation(n: int, key: int) -> Int64[np.ndarray, " n"]:
    """The numbers 0 .. n-1 in the order of their hashes. Read-only: it is shared."""
    order = np.argsort(hashed(key, np.arange(n, dtype=np.uint64)), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def indices_of(ordinals: Sequence[int] | np.ndarray, n: int, seed: int, name: str = "order") -> Int64[np.ndarray, " b"]:
    """The index in the set of each place of the stream."""
    if n < 1:
        raise ValueError(f"an order needs at least one sample, got {n}")
    places = np.asarray(ordinals, dtype=np.int64)
    epochs = places // n
    out = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        out[rows] = permutation(n, mix(seed, "data", name, int(epoch)))[places[rows] - epoch * n]
    return out


def share(first: int, count: int, rank: int, world: int) -> range:
    """This rank's contiguous part of places first .. first+count-1; the first ranks take the odd ones (np.array_split)."""
    each, extra = divmod(count, world)
    start = first + rank * each + min(rank, extra)
    return range(start, start + each + (rank < extra))
