"""One study from its plan to its table: what `percepta study NAME` does, as a function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from percepta.studies.engine.forks import Forks
from percepta.studies.engine.page import save
from percepta.studies.engine.plan import Plan
from percepta.studies.engine.running import Outcome, gpus, run_jobs, threads
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import Job
from percepta.studies.engine.table import Table, make_table
from percepta.training.log import clock
from percepta.training.signals import StopFlag

Note = Callable[[str], None]


@dataclass(frozen=True)
class Performed:
    """The table, the folder that it was written to, and how the running ended."""

    table: Table
    folder: Path
    outcome: Outcome


def perform(
    plan: Plan, root: Path, flag: StopFlag, at_once: int = 1, resume: bool = False, note: Note = lambda text: None
) -> Performed:
    """Run what is not done yet, and write the table, as far as it came."""
    store = Store(root)
    store.open(plan.at, resume)
    try:
        jobs = plan.jobs
        known = sum(store.record(job) is not None for job in jobs)
        before = f", {known} of them are done already" if known else ""
        note(f"{plan.study.name}, {plan.at.scale} scale: {len(jobs)} jobs{before}")
        with Forks() as start:
            outcome = run_jobs(jobs, store, flag, at_once, _teller(jobs, note), gpus(), start)
        table = make_table(plan, store, outcome)
        save(table, root / plan.study.name)
    finally:
        store.close()
    return Performed(table, root / plan.study.name, outcome)


def usual(scale: str) -> int:
    """Jobs at a time: much of a pocket job is its start, which takes one core."""
    return min(2, threads(1)) if scale == "pocket" else max(1, len(gpus()))


def _teller(jobs: Sequence[Job], note: Note) -> Callable[[Job, float, int, int, float | None, str], None]:
    """A line per job: what it was, its time, what is left."""
    width = len(str(len(jobs)))

    def tell(job: Job, seconds: float, done: int, of: int, left: float | None, ended: str) -> None:
        rest = "" if left is None or done == of else f", about {clock(left)} left"
        note(f"[{done:>{width}}/{of}] {told(job):<44} {clock(seconds):>7} {ended}{rest}")

    return tell


def told(job: Job) -> str:
    """A job in a few words: train mmd, K 5, domain, cubic, seed 0."""
    flags = [word if isinstance(word, str) else "" for word in job.words]
    parts = [" ".join(flags[: 2 if flags[0] == "train" else 1])]
    for flag, said in (("--sampler-steps", "K "), ("--space", ""), ("--kernel", ""), ("--spacing", ""), ("--solver", ""),
                       ("--sampler", ""), ("--steps", "steps "), ("--seed", "seed ")):  # fmt: skip
        if flag in flags and not (flags[0] == "train" and flag == "--steps"):
            parts.append(said + flags[flags.index(flag) + 1])
    return ", ".join(parts)
