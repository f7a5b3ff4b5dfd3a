"""Several processes at one folder (torchrun): the first says what is missing, each takes its blocks of files, and after each round of blocks all know how far
they are. Where one of them fails or is stopped, all leave, and all name the file.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from percepta import distributed
from percepta.distributed import Interrupted

WRONG = (ValueError, OSError)  # of the user's making: one line, and no traceback


def from_first(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, on every rank, by way of JSON; a refusal too."""
    world = distributed.world()
    if world.size == 1:
        return work()
    told, failure = None, None
    if world.first:
        try:
            told = {"value": work()}
        except WRONG as error:
            told, failure = {"refused": str(error)}, error
    found = json.loads(distributed.send_bytes(None if told is None else json.dumps(told).encode(), 0))
    if failure is not None:
        raise failure
    if "refused" in found:
        raise ValueError(found["refused"])
    return found["value"]


def blocks(names: Sequence[str], batch: int) -> list[list[list[str]]]:
    """Rounds of blocks of `batch` files, a block for each rank: the same blocks, whatever the number of ranks."""
    world = distributed.world()
    every = [list(names[first : first + batch]) for first in range(0, len(names), batch)]
    return [every[first : first + world.size] for first in range(0, len(every), world.size)]


def summed(counts: Sequence[int], failure: Exception | None) -> list[int]:
    """The ranks' counts together, after a round. Raises on every rank where one of them failed or was stopped."""
    world = distributed.world()
    if world.size == 1:
        if failure is not None:
            raise failure
        return list(counts)
    stopped = isinstance(failure, Interrupted)
    failed = [float(rank == world.rank and failure is not None and not stopped) for rank in range(world.size)]
    told = distributed.agreed(torch.tensor([*counts, stopped, *failed], dtype=torch.float64)).tolist()
    stops, failed = told[len(counts)], told[len(counts) + 1 :]
    if any(failed):
        _raise_of(failed.index(1.0), failure)
    if stops:
        raise Interrupted("while images were translated")
    return [int(value) for value in told[: len(counts)]]


def _raise_of(source: int, failure: Exception | None) -> None:
    """The failure of a rank, on all of them."""
    world = distributed.world()
    told = None if world.rank != source else json.dumps({"text": str(failure), "wrong": isinstance(failure, WRONG)}).encode()
    found = json.loads(distributed.send_bytes(told, source))
    if failure is not None and not isinstance(failure, Interrupted):
        raise failure
    if found["wrong"]:
        raise ValueError(found["text"])
    raise RuntimeError(f"rank {source} of {world.size} failed: {found['text']}")


def gathered(mine: Sequence[Any]) -> list[Any]:
    """The ranks' lists, one after the other."""
    world = distributed.world()
    if world.size == 1:
        return list(mine)
    sent = [distributed.send_bytes(json.dumps(list(mine)).encode() if k == world.rank else None, k) for k in range(world.size)]
    return [item for data in sent for item in json.loads(data)]
