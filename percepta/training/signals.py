"""SIGTERM, SIGINT and SIGUSR1 ask a run to stop: it finishes what it does, writes a checkpoint and exits with 3.

A second SIGINT leaves at once: what is on disk is whole at any moment, so there is nothing to clean up.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from percepta.distributed import Interrupted

__all__ = ["Interrupted", "StopFlag", "stop_on_signals"]


class StopFlag:
    """`asked` is the signal's name once one has come."""

    def __init__(self) -> None:
        self.asked: str | None = None

    def handle(self, number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if self.asked is not None and name == "SIGINT":
            os.write(2, b"\nsecond interrupt: leaving at once; the newest checkpoint on disk is whole\n")
            os._exit(130)
        self.asked = name

    def check(self, *_: object) -> None:
        """For callbacks: raises Interrupted once a signal has come."""
        if self.asked is not None:
            raise Interrupted(self.asked)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Install the handlers for the time of the context."""
    flag = StopFlag()
    numbers = [signal.SIGTERM, signal.SIGINT] + ([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])
    before = {number: signal.signal(number, flag.handle) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
