"""What a run was, in words: read from config.json and the lines that the run left."""

from collections.abc import Mapping, Sequence
from typing import Any

from percepta.reports.run import Run, number


def facts(run: Run) -> list[tuple[str, str]]:
    """(what, value) pairs of the summary; what is not known is not there."""
    settings, resolved = run.settings, run.resolved
    images, shape, count = resolved.get("images"), resolved.get("shape"), resolved.get("parameters")
    seen = run.metrics[-1].get("images") if run.metrics else 0
    pairs = [
        ("Method", run.recipe),
        *_domains(run, images, shape),
        ("Network", str(settings.get("network") or settings.get("init") or run.knobs.get("generator") or "")),
        ("Supervised by", _supervision(run.knobs)),
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
    source, target = run.knobs.get("source"), run.knobs.get("target")
    data = f"{source} and {target}" if source and target else run.settings.get("data", "unnamed data")
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


def _domains(run: Run, images: Any, shape: Any) -> list[tuple[str, str]]:
    """What it was trained on; a translator has two domains."""
    source, target = run.knobs.get("source"), run.knobs.get("target")
    if not (source and target):
        return [("Data", _data(run.settings, images, shape))]
    return [("Domain A", str(source)), ("Domain B", str(target)), ("Images", _data({"data": "both domains"}, images, shape))]


def _supervision(knobs: Mapping[str, Any]) -> str:
    """Of a translator: which of LaDiffGAN's losses it had, and Diffusion-GAN."""
    if "latent_gan" not in knobs:
        return ""
    losses = (("latent_gan", "latent GAN"), ("denoising", "denoising"))
    there = [
        f"{said} {knobs[name]}"
        for name, said in losses
        if knobs.get(name) not in (None, "none") and knobs.get(f"{name}_weight") != 0
    ]
    return ", ".join([*there, *(["Diffusion-GAN"] if knobs.get("diffusion_gan") else [])]) or "critics of images alone"


def _data(settings: Mapping[str, Any], images: Any, shape: Any) -> str:
    text = str(settings.get("data") or "")
    parts = [f"{images:,} images"] if isinstance(images, int) else []
    if isinstance(shape, list) and shape:
        parts.append(" × ".join(map(str, shape)))
    return f"{text} ({', '.join(parts)})" if text and parts else text
