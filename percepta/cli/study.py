"""percepta study: a table or figure of a paper, run as a matrix of commands at equal budget."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from percepta.absent import absent
from percepta.cli import fail
from percepta.cli.parse import Usage, check_folder, nearest, parse, to_stdout


@dataclass(frozen=True)
class Study:
    """Run the study NAME, a table or figure of a paper: every cell at equal budget, over several seeds, the paper's numbers beside ours.

    Example: percepta study mmd-table1 --scale pocket

    NAME `list` lists the studies. Work that cells share, also those of other studies in the same folder, is done once. What was
    stopped goes on when the same command is called again. DIR/NAME/table.html, table.md and table.json come out.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """The study; or `list`."""
    scale: Literal["pocket", "paper"] = "pocket"
    """pocket: built-in images, minutes on two cores. paper: the paper's sizes, which need its images (--data) and a GPU."""
    out: Path | None = None
    """Folder of all studies of a scale. Default: runs/studies/SCALE."""
    resume: bool = False
    """Go on in a folder that is there, as calling again does; refused where there is nothing to go on with."""
    jobs: int | None = None
    """Jobs at a time; the threads of the machine are divided among them, several GPUs are taken in turn. Default: 2 at pocket scale
    where there are two cores, else one per GPU, or 1."""
    seeds: int = 3
    """So many seeds of everything but the pretrained model: 0, 1, 2, ... More of them later adds to what is done."""
    data: str | None = None
    """Images instead of the built-in ones, as for percepta train; of ladiffgan a folder with trainA, trainB, testA and testB."""
    size: int | None = None
    """Side of the images. Default: the study's own, 16 or 32 at pocket scale."""
    init: str | None = None
    """A pretrained pipeline or run to start from. Default: one is trained, once for all rows and studies."""
    held_out: str | None = None
    """Images like those of --data that no model is trained on: what a perfect model would score, and the yardstick of copying."""
    target: tuple[str, ...] = ()
    """Images of the domains that a model is brought to (sadm-table4): one or two sets, or the paper's, as in flowers=DIR cars=DIR. For the studies of
    ladiffgan a second folder of two domains."""
    plan: bool = False
    """Print the commands, and how much is done, and run nothing."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Study, args, "percepta study")
    from percepta.studies import studies

    found = studies()
    if command.name == "list":
        width = max(map(len, found))
        told = {name: {"summary": study.summary, "ask": study.ask} for name, study in found.items()}
        lines = [f"{name:<{width}}  {facts['summary']}" for name, facts in told.items()]
        to_stdout(json.dumps(told, indent=2) if command.json else "\n".join(lines))
        return 0
    if command.name not in found:
        raise Usage(f"percepta study: there is no study {command.name!r}{nearest(command.name, found)} (see percepta study list)")
    for flag, value in (("jobs", command.jobs), ("seeds", command.seeds), ("size", command.size)):
        if value is not None and value < 1:
            raise Usage(f"percepta study: --{flag} must be at least 1, got {value}")
    from percepta.studies.engine.plan import make_plan

    study = found[command.name]
    at = study.at(
        command.scale, data=command.data, size=command.size, init=command.init, held_out=command.held_out, targets=command.target
    )
    if at.init is not None and not Path(at.init).exists():
        raise Usage(f"percepta study: --init {absent(at.init)}")
    root = command.out or Path("runs/studies") / command.scale
    check_folder(root, f"percepta study: --out {root}")
    plan = make_plan(study, at, range(command.seeds))
    return _show_plan(plan, root, command.json) if command.plan else _perform(plan, root, command)


def _show_plan(plan, root: Path, as_json: bool) -> int:
    from percepta.studies.engine.store import Store
    from percepta.training.log import console

    store = Store(root)
    commands = [store.command(job) for job in plan.jobs]
    counts = plan.counts(lambda job: store.record(job) is not None)
    found = {"study": plan.study.name, "commands": commands, **asdict(counts)}
    to_stdout(json.dumps(found) if as_json else "\n".join(commands))
    if not as_json:  # stdout holds nothing but commands
        console.print(counts.told(), markup=False)
    return 0


def _perform(plan, root: Path, command: Study) -> int:
    from percepta.studies.engine.page import markdown
    from percepta.studies.engine.perform import perform, usual
    from percepta.training.log import console
    from percepta.training.signals import stop_on_signals

    with stop_on_signals() as flag:
        at_once = command.jobs or usual(plan.at.scale)
        done = perform(plan, root, flag, at_once, command.resume, lambda text: console.print(text, markup=False))
    if command.json:
        to_stdout(json.dumps(done.table))
    elif not done.outcome.stopped:
        to_stdout(markdown(done.table).partition("\n## Budget")[0])
    console.print(f"written: {done.folder / 'table.html'}, table.md and table.json beside it", markup=False)
    for text in done.outcome.failed.values():
        if not text.startswith("not run: "):
            fail(text)
    if done.outcome.stopped:
        return fail("stopped; run the same command again to go on", 3)
    if done.outcome.failed:
        count = f"{len(done.outcome.failed)} of {len(plan.jobs)} jobs"
        return fail(f"{count} failed or stood behind one that did; the others are done", 1)
    return 0
