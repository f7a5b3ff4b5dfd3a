"""Run folders made by hand: what a run leaves, without training one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SETTINGS = {
    "data": "shapes", "size": 16, "network": "unet-pocket", "init": None, "out": "runs/first", "steps": 40, "batch": 16, "seed": 0,
    "resume": False, "flip": False, "channels_last": True, "betas": [0.9, 0.999], "lr": 0.0001, "ema": "classic", "report_to": [],
}  # fmt: skip
PROTOCOL = {
    "generated": {"name": "runs/first", "count": 5000, "fingerprint": "a1", "drawn": {"sampler": "ddim", "steps": 50, "weights": "c3"}},
    "reference": {"name": "shapes", "count": 50000, "fingerprint": "b2"},
    "dialect": {"name": "torch-fidelity", "kid_size": 1000},
    "extractors": {"inception": {"weights": "d4", "resize": "tf1-bilinear-299"}},
}  # fmt: skip


def lines(path: Path, records: list[dict[str, Any]], tail: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


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
