"""--compile with --peft lora: the compiled run is the plain one, goes on exactly, and leaves files that know nothing of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel
from peft import PeftModel
from processes import digest, lines
from safetensors.torch import load_file

from percepta.formulation import Denoiser, Formulation
from percepta.interop import export_pipeline
from percepta.networks import adapt, load_model
from percepta.path import LinearBeta
from percepta.recipes import recipes
from percepta.training.precision import missing_compiler
from percepta.training.reopen import export_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_compiler(torch.device("cpu")) is not None, reason="torch.compile needs a C++ compiler"),
]


def tiny_dit():
    """One block: a compiler needs a minute for a small U-Net."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=1, sample_size=8,
                                  patch_size=2, num_embeds_ada_norm=1)  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.15 / max(p[0].numel() if p.ndim > 1 else 10, 1) ** 0.5)
    return model


CODE = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from percepta.recipes.ddpm import Ddpm
from percepta.training.job import train
from percepta.training.settings import Settings

torch.set_num_threads(1)
root = Path(sys.argv[1])

def run(name, **changed):
    train(Ddpm(), Settings(**{**FLAGS, "init": str(root / "base"), "out": root / name, **changed}), quiet=True)

run("plain")
assert not counters["stats"]["unique_graphs"]
run("whole", compile="default")
run("parts", compile="default", steps=2)
run("parts", compile="default", resume=True)
assert counters["stats"]["unique_graphs"] and not counters["graph_break"], dict(counters)
"""
FLAGS = {"data": "shapes:length=20", "size": 8, "steps": 4, "batch": 4, "conditional": "no", "sample_every": 4, "sample_num": 2, "sample_steps": 2,
         "log_every": 1, "checkpoint_every": 2, "device": "cpu", "peft": "lora", "lora_rank": 4, "lr": 1e-3, "ema_decay": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain run, a compiled one, and a compiled one in two halves, each with a preview: in a process without the check of shapes."""
    root = tmp_path_factory.mktemp("compiled")
    export_pipeline(root / "base", Denoiser(adapt(tiny_dit()), Formulation(LinearBeta())))
    code = CODE.replace("FLAGS", repr(FLAGS))
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: root / name for name in ("base", "plain", "whole", "parts")}


def test_it_trains_the_same_numbers(runs):
    for one, two in zip(lines(runs["plain"]), lines(runs["whole"]), strict=True):
        assert one.keys() == two.keys()
        assert all(one[key] == pytest.approx(two[key], rel=1e-5) for key in one)
    for stem in ("weights-model", "ema"):
        plain, whole = (load_file(runs[name] / f"checkpoint-4/{stem}.safetensors") for name in ("plain", "whole"))
        assert plain.keys() == whole.keys() and all(".lora_" in key and "_orig_mod" not in key for key in whole)
        assert max(float((plain[key] - whole[key]).abs().max()) for key in plain) < 1e-5
        assert any(bool(value.any()) for key, value in whole.items() if ".lora_B" in key), "it has moved"


def test_it_goes_on_to_the_bit(runs):
    whole, parts = (load_file(runs[name] / "checkpoint-4/weights-model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())
    whole, parts = digest(runs["whole"]), digest(runs["parts"])
    assert {name: parts[name] for name in whole} == whole, "the halves have a preview more"


def test_its_exports_are_those_of_a_plain_run(runs, tmp_path):
    """model/ loads without peft, adapter/ with it, and both draw what the plain run's draw."""
    export_run(recipes(), runs["whole"], tmp_path / "again")
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (runs["whole"] / "model" / name).read_bytes()
    assert json.loads((runs["whole"] / "config.json").read_text())["settings"]["compile"] == "default"
    x, time = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 500.0])
    outs = []
    for folder in (runs["plain"] / "model", runs["whole"] / "model"):
        model = DiTTransformer2DModel.from_pretrained(folder / "transformer")
        outs.append(adapt(model)(x, time).detach())
    base = adapt(load_model(runs["base"] / "transformer"))
    still = base(x, time).detach()
    base.model = PeftModel.from_pretrained(base.model, str(runs["whole"] / "adapter")).base_model.model
    outs.append(base(x, time).detach())
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(outs[1], outs[2], atol=1e-4, rtol=0)
    assert float((outs[0] - still).abs().max()) > 1e-3
