"""Running jobs: as many at a time as asked, each a process of its own, in an order in which none waits for a later one.

The same command goes on where it was stopped: a training by its own --resume, drawing and judging by what lies in their folders.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from percepta.studies.engine.forks import Process, Start, spawned
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import Job
from percepta.training.signals import StopFlag

PAUSE = 0.05  # seconds between two looks at the children
LAST_LINES = 6


@dataclass
class Outcome:
    """`failed`: job key -> what it said last; a job behind a failed one was not started and says which."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


@dataclass
class _Child:
    job: Job
    process: Process
    slot: int
    started: float
    sent: bool = False


Tell = Callable[[Job, float, int, int, float | None, str], None]  # job, its seconds, done, of, seconds that are left, how it ended


def run_jobs(
    jobs: Sequence[Job], store: Store, flag: StopFlag, at_once: int = 1, tell: Tell = lambda *_: None, devices: Sequence[str] = (),
    start: Start = spawned,
) -> Outcome:  # fmt: skip
    """All jobs that are not done yet. A failure costs the jobs behind it; the others go on."""
    out, running = Outcome(), list[_Child]()
    for job in jobs:
        if (record := store.record(job)) is not None:
            out.records[job.key] = record
    waiting = [job for job in jobs if job.key not in out.records]
    try:
        while running or (waiting and flag.asked is None):
            _drop_hopeless(waiting, out)
            while flag.asked is None and len(running) < at_once and (job := _next(waiting, out)) is not None:
                share = min(at_once, len(running) + 1 + sum(_ready(other, out) for other in waiting if other is not job))
                waiting.remove(job)
                slot = min(set(range(at_once)) - {child.slot for child in running})
                running.append(_start(job, store, slot, threads(share), devices, start))
            for child in [child for child in running if _ended(child, flag)]:
                running.remove(child)
                ended = _collect(child, store, out, flag)
                tell(child.job, time.monotonic() - child.started, len(out.records) + len(out.failed), len(jobs),
                     left(jobs, out, at_once), ended)  # fmt: skip
            if running:
                time.sleep(PAUSE)
    finally:
        for child in running:  # an error of ours: nobody else would tell them
            child.process.terminate()
    out.stopped = flag.asked is not None
    return out


def threads(jobs: int) -> int:
    """Of the machine's (or OMP_NUM_THREADS, where that says less), an equal part for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, (int(asked) if asked.isdigit() else cores) // max(1, jobs))


def gpus() -> tuple[str, ...]:
    """The devices that children take in turn; none where there is no GPU or only one."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        found = tuple(filter(None, (part.strip() for part in shown.split(","))))
    else:
        import torch

        found = tuple(map(str, range(torch.cuda.device_count())))
    return found if len(found) > 1 else ()


def left(jobs: Sequence[Job], out: Outcome, at_once: int) -> float | None:
    """Seconds, from those of finished jobs of the same kind; None while there is no kind to go by."""
    by_kind: dict[str, list[float]] = {}
    for job in jobs:
        if job.key in out.records:
            by_kind.setdefault(_kind(job), []).append(out.records[job.key]["seconds"])
    waiting = [job for job in jobs if job.key not in out.records and job.key not in out.failed]
    if not all(_kind(job) in by_kind for job in waiting):
        return None
    return sum(sum(by_kind[_kind(job)]) / len(by_kind[_kind(job)]) for job in waiting) / at_once


def _kind(job: Job) -> str:
    return job.name.rpartition("-")[0]


def _ready(job: Job, out: Outcome) -> bool:
    return all(need.key in out.records for need in (*job.inputs, *job.after))


def _next(waiting: Sequence[Job], out: Outcome) -> Job | None:
    return next((job for job in waiting if _ready(job, out)), None)


def _drop_hopeless(waiting: list[Job], out: Outcome) -> None:
    """Jobs that need a failed one; in their order, so that whole chains fall."""
    for job in list(waiting):
        bad = next((need for need in (*job.inputs, *job.after) if need.key in out.failed), None)
        if bad is not None:
            waiting.remove(job)
            reason = out.failed[bad.key]
            out.failed[job.key] = reason if reason.startswith("not run: ") else f"not run: {bad.name} failed"


def _start(job: Job, store: Store, slot: int, count: int, devices: Sequence[str], start: Start) -> _Child:
    words = store.words(job)
    if words[0] == "train" and store.folder(job).is_dir():
        words.append("--resume")
    env = {"OMP_NUM_THREADS": str(count)}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    process = start(words, env, store.file(job, "out"), store.file(job, "log"), store.lock)
    return _Child(job, process, slot, time.monotonic())


def _ended(child: _Child, flag: StopFlag) -> bool:
    """Whether it has; a stop is handed on once, and what the child then writes is waited for."""
    if flag.asked is not None and not child.sent:
        child.sent = True
        child.process.send_signal(signal.SIGTERM)
    return child.process.poll() is not None


def _collect(child: _Child, store: Store, out: Outcome, flag: StopFlag) -> str:
    """Keep what it came to; how it ended, in a word."""
    job, code, seconds = child.job, child.process.returncode, time.monotonic() - child.started
    printed = store.file(job, "out")
    if code == 0:
        try:
            result = json.loads(printed.read_text()) if "--json" in job.words else None
        except ValueError:
            out.failed[job.key] = f"{job.name} ended well, but what it printed is no JSON: {printed}"
            return "failed"
        out.records[job.key] = store.finish(job, seconds, result)
        printed.unlink()
        return "done"
    store.spend(job, seconds)
    if flag.asked is not None:
        return "stopped"
    log = store.file(job, "log").read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
    out.failed[job.key] = "\n".join([f"{job.name} ended with {code}: {store.command(job)}", *log])
    return "failed"
