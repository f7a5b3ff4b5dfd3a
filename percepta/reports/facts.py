"""What a run was, in words and in the commands that repeat it: read from config.json and the lines that the run left."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from percepta.reports.numbers import MOVABLE, flat
from percepta.reports.run import Run, number

SHELL_HOME = "runs/again"
ASKED = {"precision": "pr", "recall": "pr", "density": "dc", "coverage": "dc"}  # value -> the metric that is asked for


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) pairs of the summary; what is not known is not there."""
    settings, resolved = run.settings, run.resolved
    images, shape, count = resolved.get("images"), resolved.get("shape"), resolved.get("parameters")
    seen = run.metrics[-1].get("images") if run.metrics else 0
    pairs = [
        ("Method", run.recipe),
        ("Data", _data(settings, images, shape)),
        ("Network", str(settings.get("network") or settings.get("init") or "")),
        ("Parameters", short(count)),
        ("Trained", _adapter(resolved.get("peft"))),
        ("Steps", f"{run.step:,} of {settings['steps']:,}" if isinstance(settings.get("steps"), int) else f"{run.step:,}"),
        ("Images seen", _count(seen)),
        ("Time training", duration(run.seconds) if run.seconds else ""),
        ("Batch", _count(settings.get("batch"))),
        ("Learning rate", f"{lr:g}" if (lr := number(settings.get("lr"))) is not None else ""),
        ("Seed", str(settings["seed"]) if "seed" in settings else ""),
        ("Averaged weights", str(settings.get("ema") or "")),
        ("Last written", f"{run.written:%Y-%m-%d %H:%M} UTC" if run.written else ""),
        ("Percepta", str(resolved.get("percepta") or "")),
        ("torch", str(resolved.get("torch") or "")),
    ]
    return [(name, value) for name, value in pairs if value]


def fact_table(runs: Sequence[Run]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str]]]:
    """(facts in which the runs differ, with a value per run; facts that are the same in all)."""
    tables = [dict(facts(run)) for run in runs]
    differ, same = [], []
    for name in dict.fromkeys(name for table in tables for name in table):
        values = [table.get(name, "") for table in tables]
        if len(set(values)) > 1:
            differ.append((name, values))
        else:
            same.append((name, values[0]))
    return differ, same


def lede(run: Run) -> str:
    """One sentence: what was trained on what, how far."""
    data = run.settings.get("data", "unnamed data")
    count = short(run.resolved.get("parameters"))
    model = f"{'An' if run.recipe[:1] in 'aeiou' else 'A'} {run.recipe} model" + (f" of {count} parameters" if count else "")
    return f"{model}, trained on {data}. {state(run)}"


def state(run: Run) -> str:
    """How far it came."""
    asked = run.settings.get("steps")
    if run.finished:
        return f"It finished all {run.step:,} steps."
    if not run.metrics:
        return "No step was logged: it was just started, or stopped before the first line of metrics."
    of = f" of {asked:,}" if isinstance(asked, int) else ""
    return f"It stands at step {run.step:,}{of}: it is still training, or was stopped."


def commands(run: Run) -> list[tuple[str, str]]:
    """(what it does, command)."""
    config = shlex.quote(str(shown_path(run.root) / "config.json"))
    out = [("Train it again, with all its settings", f"percepta train {run.recipe} --config {config} --out {SHELL_HOME}")]
    if not run.finished:
        out.append(
            ("Go on where it stopped", f"percepta train {run.recipe} --out {shlex.quote(str(shown_path(run.root)))} --resume")
        )
    if (judge := judge_again(run)) is not None:
        out.append(("Judge it again", judge))
    out.append(("The same training without the file: every flag", spelt_out(run)))
    return out


def judge_again(run: Run) -> str | None:
    """The command of the last evaluation made after training; None where its protocol does not say enough to repeat it."""
    latest = run.latest
    if latest is None or latest.step is not None:  # those of a step were made while it trained, by its own random stream
        return None
    known, metrics = dict(flat(latest.protocol)), latest.metrics
    drawn = {key.removeprefix("generated.drawn."): value for key, value in known.items() if key.startswith("generated.drawn.")}
    if not known.get("reference.name") or "sampler" not in drawn or not str(known.get("reference.transform")).startswith("none"):
        return None
    words = ["percepta", "evaluate", str(shown_path(run.root)), str(known["reference.name"])]
    words += ["--metrics", ",".join(dict.fromkeys(ASKED.get(key.partition("@")[0], key.partition("@")[0]) for key in metrics))]
    spaces = dict.fromkeys(str(value.get("space")) for key, value in metrics.items() if key.partition("@")[0] in MOVABLE)
    if list(spaces) not in ([], ["inception-2048"]):
        words += ["--space", ",".join(spaces)]
    for name in ("num", "sampler", "steps", "guidance", "seed"):
        if drawn.get(name) is not None:
            words += [f"--{name}", str(drawn[name])]
    for flag, key, usual in (
        ("--dialect", "dialect.name", "torch-fidelity"),
        ("--kid-subsets", "dialect.kid_subsets", 100),
        ("--kid-size", "dialect.kid_size", 1000),
    ):
        if known.get(key, usual) != usual:
            words += [flag, str(known[key])]
    return shlex.join(words)


def spelt_out(run: Run) -> str:
    """The run's command with every flag that has a value."""
    words = ["percepta", "train", run.recipe]
    knobs = run.config.get("knobs")
    for name, value in {**(knobs if isinstance(knobs, Mapping) else {}), **run.settings}.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "resume" or value is None or value == []:
            continue
        if name == "out":
            words += [flag, SHELL_HOME]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    return " ".join(map(shlex.quote, words))


def shown_path(root: Path) -> Path:
    """A run's path as a user in this folder would type it."""
    return root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root


def short(count: Any) -> str:
    """1.06 M."""
    known = number(count)
    if known is None:
        return ""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if known >= size:
            return f"{known / size:.3g} {unit}"
    return f"{known:.0f}"


def duration(seconds: float) -> str:
    """About so long, two units."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _count(value: Any) -> str:
    known = number(value)
    return "" if known is None else f"{known:,.0f}"


def _adapter(peft: Any) -> str:
    """ "1.08 M weights of lora (3 %)" where not all were trained."""
    if not isinstance(peft, Mapping):
        return ""
    part = number(peft.get("fraction"))
    return f"{short(peft.get('trained'))} weights of {peft.get('method')}" + ("" if part is None else f" ({100 * part:.2g} %)")


def _data(settings: Mapping[str, Any], images: Any, shape: Any) -> str:
    text = str(settings.get("data") or "")
    parts = [f"{images:,} images"] if isinstance(images, int) else []
    if isinstance(shape, list) and shape:
        parts.append(" × ".join(map(str, shape)))
    return f"{text} ({', '.join(parts)})" if text and parts else text
