"""The commands that repeat a run, go on with it, and judge it again: read from its config.json and from the protocols of its evaluations."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from percepta.reports.names import MOVABLE, parts
from percepta.reports.numbers import flat
from percepta.reports.run import Run, number

SHELL_HOME = "runs/again"
TRANSLATED = ", translated"
CROPS = ("center-crop", "stretch", "pad", "none")
BESIDE = ("lpips-to-source", "cycle-error", "psnr", "lpips-to-truth", "shape-accuracy", "colour-accuracy")  # nobody asks for them
ASKED = {"precision": "pr", "recall": "pr", "density": "dc", "coverage": "dc"}  # value -> the metric that is asked for


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
    if any(parts(name)[2] for name in metrics):
        return _judge_translations(run, known, metrics)
    drawn = {key.removeprefix("generated.drawn."): value for key, value in known.items() if key.startswith("generated.drawn.")}
    if not known.get("reference.name") or "sampler" not in drawn or not str(known.get("reference.transform")).startswith("none"):
        return None
    words = ["percepta", "evaluate", str(shown_path(run.root)), str(known["reference.name"]), *_measures(metrics)]
    for name in ("num", "sampler", "steps", "guidance", "seed"):
        if drawn.get(name) is not None:
            words += [f"--{name}", str(drawn[name])]
    return shlex.join([*words, *_dialect(known, 1000)])


def _judge_translations(run: Run, known: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Of a translator: on the same two sets, so many images of each."""
    source, target = (str(known.get(side) or "") for side in ("generated.name", "reference.name"))
    counts = [number(known.get(f"{way}{side}.count")) for way in ("", "b2a.") for side in ("generated", "reference")]
    crop = str(known.get("reference.transform")).partition(" ")[0]
    made, one, other, two = counts
    if not source.endswith(TRANSLATED) or not target or crop not in CROPS or made is None or one is None:
        return None
    computed = {name: value for name, value in metrics.items() if parts(name)[0] not in BESIDE}
    words = [
        "percepta",
        "evaluate",
        str(shown_path(run.root)),
        target,
        "--source",
        source.removesuffix(TRANSLATED),
        *_measures(computed),
    ]
    words += ["--num", f"{made:.0f}"] if other in (None, made) else []  # all of both, where these are not as many
    words += ["--crop", crop]
    for name in ("size", "seed"):
        if known.get(f"generated.drawn.{name}") is not None:
            words += [f"--{name}", str(known[f"generated.drawn.{name}"])]
    return shlex.join([*words, *_dialect(known, min(1000, int(min(c for c in (made, one, other, two) if c is not None)) // 2))])


def _measures(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The flags that ask for these metrics, in their spaces."""
    names = {key: parts(key)[0] for key in metrics}
    words = ["--metrics", ",".join(dict.fromkeys(ASKED.get(name, name) for name in names.values()))] if names else []
    spaces = dict.fromkeys(str(value.get("space")) for key, value in metrics.items() if names[key] in MOVABLE)
    return words + (["--space", ",".join(spaces)] if list(spaces) not in ([], ["inception-2048"]) else [])


def _dialect(known: Mapping[str, Any], kid_size: int) -> list[str]:
    """What is not usual of it."""
    usual = (
        ("--dialect", "dialect.name", "torch-fidelity"),
        ("--kid-subsets", "dialect.kid_subsets", 100),
        ("--kid-size", "dialect.kid_size", kid_size),
    )
    return [word for flag, key, value in usual if known.get(key, value) != value for word in (flag, str(known[key]))]


def spelt_out(run: Run) -> str:
    """The run's command with every flag that has a value."""
    words = ["percepta", "train", run.recipe]
    for name, value in {**run.knobs, **run.settings}.items():
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
