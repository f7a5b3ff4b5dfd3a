"""percepta report: one HTML page of one or several runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from percepta.cli import fail
from percepta.cli.parse import Usage, check_folder, parse, to_stdout

SURE = ("ddim", "euler", "heun", "rk4", "dpmpp")  # samplers that make one image of one noise


@dataclass(frozen=True)
class Report:
    """Write what runs left as one HTML file: metrics, curves, sample grids, figures, and the commands to repeat them.

    Example: percepta report runs/first runs/second --out report.html

    The file needs no network, prints, and can be sent as it is. Runs that still train, or were stopped, are shown as far as they came.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders; several are laid side by side."""
    out: Path = Path("report.html")
    """The file to write."""
    strips: int = 0
    """First draw so many interpolation strips with each run's model: walks from one of its samples to the next."""
    device: str = "auto"
    """For --strips: auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Report, args, "percepta report")
    if not command.runs:
        raise Usage("percepta report: RUNS is missing: give one or several run folders (see percepta report --help)")
    if command.strips < 0:
        raise Usage(f"percepta report: --strips must be at least 0, got {command.strips}")
    from percepta.reports.page import check_out, write_report
    from percepta.reports.run import read_runs

    check_out(command.out)
    if command.out is not None:
        check_folder(command.out.parent, f"percepta report: --out {command.out}")
    if command.strips:
        from percepta.training.signals import Interrupted, stop_on_signals

        runs = read_runs(command.runs)
        with stop_on_signals() as flag:
            try:
                for one in runs:
                    draw_strips(one, command.strips, command.device, flag.check)
            except Interrupted:
                return fail("stopped before the report was written; run the same command again", 3)
    report = write_report(command.runs, command.out)
    for note in report.notes:
        fail(note)
    found = {"out": str(report.out), "bytes": report.size, "runs": list(report.runs), "notes": list(report.notes)}
    to_stdout(json.dumps(found) if command.json else f"{report.out}: {', '.join(report.runs)} ({report.size / 1e6:.1f} MB)")
    return 0


def draw_strips(run, count: int, device: str, check) -> Path:
    """figures/strips.png of a run: walk k goes from sample 2 k to sample 2 k + 1 of its seed (MMD-DDM, equation 8)."""
    from percepta.images import to_uint8
    from percepta.reports.figures import Words, strip
    from percepta.sampling import Drawing, Job, reads_text

    root, settings = run.root, run.settings
    sampler, steps, guidance = settings.get("sampler"), settings.get("sample_steps"), settings.get("guidance") or 1.0
    if run.resolved.get("chain"):
        sampler, steps = None, None  # drawn by the chain that it was finetuned for
    prompts, cache = captions(run, 2 * count) if reads_text(root) else (), settings.get("cache")
    job = Job(
        source=root, num=2 * count, steps=steps, sampler=sampler if sampler in SURE else None, guidance=guidance,
        prompts=prompts, cache=None if cache is None else Path(cache), seed=settings.get("seed") or 0, device=device,
    )  # fmt: skip
    drawing = Drawing(job, check)
    rows = [list(to_uint8(drawing.walk(2 * k, 2 * k + 1))) for k in range(count)]
    told = [f"{prompts[2 * k % len(prompts)]:.80}" for k in range(count)] if any(prompts) else []
    how = f"{drawing.how.sampler}, {drawing.how.steps} steps, seed {job.seed}"
    words = Words(
        title="Interpolation strips",
        caption=f"From one sample on the left to another on the right: noises on the great circle between theirs (slerp). {how}."
        + (" Each row keeps the class of its first image." if drawing.labels is not None else "")
        + (f" Each row keeps the text of its first image: {'; '.join(told)}." if told else ""),
        alt=f"{count} rows of {len(rows[0])} images; in each row the first image changes step by step into the last",
    )
    return strip(root / "figures", "strips", rows, words)


def captions(run, count: int) -> tuple[str, ...]:
    """What a run of a model that reads text was told: the captions of its last sample grid, or where it has none, of its first images."""
    from percepta.data import open_source

    for one in reversed(run.grids):
        if found := tuple(one.protocol.get("prompts", ())):
            return found[:count]
    settings = run.settings
    if settings.get("conditional") == "no":
        return ("",)
    try:
        texts = open_source(settings["data"], settings.get("size")).texts
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"--strips draws with the captions of a run's data, which cannot be read: {error}") from error
    found = tuple(text for text in (texts or ())[:count] if text is not None)
    if not found:
        raise ValueError(f"--strips draws with the captions of a run's data, and {settings['data']} has none: leave --strips away")
    return found
