"""What every bench script needs: its flags, the head line with hardware and versions, interleaved timing, the real loop, peak memory.

Both sides of a comparison run in turn in one process and are compared by their medians, so that whatever else the machine does falls on
all of them. A ratio is the peer's time over ours: above 1 we are faster.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import percepta
from percepta.distributed import World
from percepta.training.data import open_data
from percepta.training.folder import RunFolder
from percepta.training.job import build_method, prepare_networks
from percepta.training.log import Meter
from percepta.training.loop import Loop
from percepta.training.recipe import Recipe
from percepta.training.settings import Settings
from percepta.training.signals import StopFlag
from percepta.training.state import make_state

PATIENCE = 10  # for each turn that is to be timed, so many may be lost to other programs


def parser(about: str | None, quick: str) -> argparse.ArgumentParser:
    """The flags of every script; `quick` says what --quick leaves out."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", action="store_true", help="one JSON object on stdout, ratios by name")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads (default: %(default)s)")
    return made


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def about(*packages: str, device: str = "cpu") -> dict[str, Any]:
    """Hardware and versions, ours and the peers'."""
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "percepta": percepta.__version__,
        "torch": torch.__version__,
        **{name: version(name) for name in packages},
    }


def headline(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def printer(as_json: bool) -> Callable[..., None]:
    """`print`, away from stdout where that is for one JSON object."""

    def say(*text: object) -> None:
        print(*text, file=sys.stderr if as_json else sys.stdout, flush=True)

    return say


def finish(as_json: bool, ratios: Mapping[str, float], **more: Any) -> None:
    """The JSON object, if it was asked for."""
    if as_json:
        print(json.dumps({"ratios": {name: round(value, 4) for name, value in ratios.items()}, **more}))


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each side in each round. Every other round runs the sides backwards: none is always the first after another."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + warmup):
        for name in list(sides) if k % 2 else reversed(list(sides)):
            begin = time.perf_counter()
            sides[name]()
            wait()
            if k >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mib() -> float:
    """The most memory this process has held. Not getrusage's: that one starts at the size of the process that launched us."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def make_loop(recipe: Recipe, settings: Settings, device: torch.device, folder: Path) -> Loop:
    """The loop of `percepta train` with these flags, before its first step."""
    data = open_data(settings, World(), device, lambda text: None)
    method = build_method(recipe, settings, data)
    method.to(device)
    prepare_networks(method, settings, device)
    state = make_state(method, settings, device)
    meter = Meter(0, settings.steps, settings.batch, quiet=True)
    return Loop(method, data.batches, state, settings, RunFolder(folder), device, StopFlag(), meter)


class _Enough(Exception):
    """Ends a loop from inside its data, so that no checkpoint is written."""


def run_loop(loop: Loop, after: Callable[[float], bool]) -> None:
    """`Loop.run` until `after` says True. It is told the seconds of each step: from asking for its data to asking for the next one's."""
    stream = loop.batches

    def timed(start: int, stop: int) -> Iterator[Any]:
        batches = stream(start, stop)
        while True:
            begin = time.perf_counter()
            yield next(batches)
            if after(time.perf_counter() - begin):
                raise _Enough

    loop.batches = timed
    loop.folder.open(resume=False)
    try:
        loop.run()
    except _Enough:
        pass
    finally:
        loop.folder.close()
        loop.batches = stream


class Requests:
    """The far end of `take_turns`, in the process of a side: "4" on a line asks for four steps, the answer is one JSON line."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.left = 0
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        sys.stdout = sys.stderr  # whatever a side prints must not be taken for an answer

    def answer(self, step: Callable[[], object]) -> None:
        """Take steps until no more are asked for."""
        while not (self.left == 0 and self._next()):
            begin = time.perf_counter()
            step()
            self.done(time.perf_counter() - begin, read=False)

    def done(self, seconds: float, read: bool = True) -> bool:
        """A step is over; True when there is nothing more to do. The first step, which nobody asked for, is the warm-up."""
        if self.left:
            self.seconds.append(seconds)
            self.left -= 1
            if self.left == 0:
                print(json.dumps({"seconds": self.seconds, "peak_mib": peak_mib()}), file=self._out, flush=True)
        return read and self.left == 0 and self._next()

    def _next(self) -> bool:
        self.seconds = []
        self.left = int(sys.stdin.readline() or 0)
        return self.left == 0


def take_turns(
    script: str, sides: Mapping[str, str], rounds: int, steps: int = 1, warmup: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every step, and peak MiB, of sides that are processes: `script --serve SIDE`. One works while the others wait.

    A turn during which other programs took more than a twentieth of the machine is taken again once it is quiet, while patience lasts.
    """
    patience, disturbed = rounds * len(sides) * PATIENCE, 0
    command = [sys.executable, script, "--threads", str(torch.get_num_threads()), "--serve"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {name: subprocess.Popen([*command, side], **pipes) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    mib = dict.fromkeys(sides, 0.0)

    def ask(name: str, count: int) -> list[float]:
        worker = workers[name]
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(f"{count}\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"the side {name!r} ended with {worker.wait()}; its message is above")
        found = json.loads(answer)
        mib[name] = found["peak_mib"]
        return found["seconds"]

    try:
        for name in sides:
            ask(name, warmup)
        for k in range(rounds):
            for name in list(sides) if k % 2 else reversed(list(sides)):
                while True:
                    before = _busy(workers[name].pid)
                    found = ask(name, steps)
                    if disturbed >= patience or _others(before, _busy(workers[name].pid)) < 0.05:
                        break
                    disturbed += 1
                    while disturbed < patience and not _quiet():
                        disturbed += 1
                seconds[name] += found
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    if disturbed >= patience:
        print("other programs kept this machine busy: these figures are disturbed", file=sys.stderr)
    return seconds, mib


def _busy(pid: int) -> tuple[float, float, float]:
    """(now, CPU seconds of all programs, CPU seconds of this one)."""
    stat, own = Path("/proc/stat"), Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return time.perf_counter(), 0.0, 0.0
    user, nice, system, _, _, irq, softirq, *_ = map(int, stat.read_text().split("\n", 1)[0].split()[1:])
    mine = own.read_text().rpartition(")")[2].split()
    tick = os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), (user + nice + system + irq + softirq) / tick, (int(mine[11]) + int(mine[12])) / tick


def _quiet(seconds: float = 0.5) -> bool:
    """Whether other programs leave the machine alone just now."""
    before = _busy(os.getpid())
    time.sleep(seconds)
    return _others(before, _busy(os.getpid())) < 0.05


def _others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """The share of the machine that programs other than this one took."""
    wall, everybody, mine = (b - a for a, b in zip(before, after, strict=True))
    return (everybody - mine) / (wall * (os.cpu_count() or 1))
