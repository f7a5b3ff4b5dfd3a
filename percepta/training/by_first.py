"""What rank 0 does while the others wait: encoding latents, training an encoder, reading a reference."""

from collections.abc import Callable
from typing import TypeVar

import torch

from percepta import distributed
from percepta.training.signals import Interrupted

T = TypeVar("T")


def by_first(work: Callable[[], T], doing: str) -> T | None:
    """What `work` gives on rank 0, None on the others; a signal that comes meanwhile to rank 0 sends all of them home, Interrupted `doing`."""
    made, stopped = None, False
    if distributed.world().first:
        try:
            with distributed.alone():
                made = work()
        except Interrupted:
            stopped = True
    if distributed.agreed(torch.tensor([float(stopped)])).item():
        raise Interrupted(doing)
    return made
