"""Run folders made by hand: what a run leaves, without training one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_folders import COLUMNS, KEYS, PROTOCOL, SETTINGS, lines, translation_grid


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, steps=..., grids=(10, 20), colour=..., evaluated=..., **settings) -> the run's folder."""

    def make(
        name: str = "first", steps: int = 40, grids: tuple[int, ...] = (20, 40), colour: str = "teal", evaluated: dict | None = None,
        seed: int = 0, tail: str = "", **settings: Any,
    ) -> Path:  # fmt: skip
        root = tmp_path / "runs" / name
        (root / "samples").mkdir(parents=True)
        config = {"recipe": "ddpm", "knobs": {"predict": None, "gamma": 5.0}, "settings": {**SETTINGS, "steps": 40, **settings}}
        config["resolved"] = {"percepta": "0.1", "torch": "2.15", "images": 50000, "shape": [3, 16, 16], "parameters": 1055203}
        (root / "config.json").write_text(json.dumps(config))
        every = range(2, steps + 1, 2)
        lines(
            root / "metrics.jsonl",
            [
                {
                    "step": s,
                    "images": 16 * s,
                    "denoising": 1 / s,
                    "share/denoising": 0.75,
                    "share/mmd2": 0.25,
                    "grad_norm/model": 1.5,
                    "lr": 1e-4,
                }
                for s in every
            ],
            tail,
        )
        lines(root / "timing.jsonl", [{"step": s, "images_per_s": 32.0, "memory_mib": 900.0} for s in every])
        for step in grids:
            path = root / "samples" / f"step-{step:07d}.png"
            Image.effect_noise((68, 68), 60).convert("RGB").save(path)
            Image.blend(Image.open(path), Image.new("RGB", (68, 68), colour), 0.7).save(path)
            protocol = {"step": step, "sampler": "ddim", "steps": 50, "seed": seed, "num": 4, "guidance": 1.0, "weights": "ema"}
            path.with_suffix(".json").write_text(json.dumps(protocol))
        if evaluated is not None:
            (root / "evaluation").mkdir()
            metrics = {k: v if isinstance(v, dict) else {"value": v, "space": "inception-2048"} for k, v in evaluated.items()}
            record = {
                "metrics": metrics,
                "protocol": PROTOCOL,
                "warnings": ["5,000 images are few"],
                "missing": {"is": "no logits"},
            }
            (root / "evaluation" / "evaluation.json").write_text(json.dumps(record))
        return root

    return make


@pytest.fixture
def make_translator(tmp_path: Path) -> Callable[..., Path]:
    """A run of ladiffgan; `knobs` are its recipe's flags, `seed` changes the images that it translates."""

    def make(
        name: str = "first", grids: tuple[int, ...] = (20, 40), rows: int = 3, columns: Sequence[str] = COLUMNS, seed: int = 0,
        keys: Sequence[str] = KEYS, **knobs: Any,
    ) -> Path:  # fmt: skip
        root = tmp_path / "runs" / name
        (root / "samples").mkdir(parents=True)
        flags = {"source": "photos", "target": "paintings", "generator": "ugatit", "latent_gan": "A", "denoising": "A", **knobs}
        config = {
            "recipe": "ladiffgan",
            "knobs": flags,
            "settings": {**SETTINGS, "network": None, "data": "paintings", "seed": seed},
        }
        (root / "config.json").write_text(json.dumps(config))
        record = {key: 100.0 if key == "cam" else 0.5 for key in keys} | {f"share/{key}": 0.5 for key in ("cycle", "cam")}
        lines(
            root / "metrics.jsonl",
            [{"step": s, "images": 16 * s, **record, "cycle": 1000 / s**3, "lr": 1e-4} for s in range(2, 41, 2)],
        )
        for step in grids:
            translation_grid(root / "samples" / f"step-{step:07d}.png", step, rows, columns, seed)
        return root

    return make
