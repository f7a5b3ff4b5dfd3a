"""The adapter on its base, in a process that has never heard of Percepta, gives the images of the merged pipeline."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from percepta.formulation import EDM, Denoiser, Formulation
from percepta.interop import export_pipeline
from percepta.networks import build
from percepta.path import LinearBeta
from percepta.peft import BitFit, DiffFit, Lora, attach
from percepta.recipes.ddpm import Ddpm
from percepta.training.job import train
from percepta.training.settings import Settings

CHILD = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "percepta":
            raise ImportError("percepta is not installed here")
sys.meta_path.insert(0, Block())
import json, torch
import diffusers
from diffusers import DiffusionPipeline
from peft import PeftModel
from safetensors.torch import save_file
torch.set_num_threads(1)
jobs = json.load(open(sys.argv[1]))
out = {}

def images(pipe):
    pipe.set_progress_bar_config(disable=True)
    made = pipe(batch_size=3, generator=torch.Generator().manual_seed(7), num_inference_steps=4, output_type="np").images
    return torch.from_numpy(made).contiguous()

run, base = jobs["run"], jobs["base"]
out["merged"] = images(DiffusionPipeline.from_pretrained(f"{run}/model"))
pipe = DiffusionPipeline.from_pretrained(base)
pipe.scheduler = DiffusionPipeline.from_pretrained(f"{run}/model").scheduler
out["base"] = images(pipe)
PeftModel.from_pretrained(pipe.unet, f"{run}/adapter")
out["adapter"] = images(pipe)
for kind, (cls, folder) in jobs["models"].items():
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 500.0])
    call = {"DiTTransformer2DModel": lambda m: m(x, t, torch.zeros(2, dtype=torch.long)).sample,
            "SD3Transformer2DModel": lambda m: m(x, torch.ones(2, 1, 1), torch.ones(2, 1), t).sample}[cls]
    with torch.no_grad():
        out[f"{kind}/merged"] = call(getattr(diffusers, cls).from_pretrained(f"{folder}/merged").eval())
        model = getattr(diffusers, cls).from_pretrained(f"{folder}/base").eval()
        out[f"{kind}/base"] = call(model)
        out[f"{kind}/adapter"] = call(PeftModel.from_pretrained(model, f"{folder}/adapter").eval())
x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 500.0])
labels = torch.tensor([0, 1])
calls = {"DiTTransformer2DModel": lambda m: m(x, t, labels).sample, "UNet2DModel": lambda m: m(x, t, labels).sample,
         "SD3Transformer2DModel": lambda m: m(x, torch.eye(4)[labels][:, None], torch.eye(4)[labels], t).sample}
with torch.no_grad():
    for name, (cls, folder) in jobs["folded"].items():
        out[f"folded/{name}"] = calls[cls](getattr(diffusers, cls).from_pretrained(folder).eval())
    cls, folder, adapter = jobs["dora"]
    model = diffusers.SD3Transformer2DModel.from_pretrained(folder).eval()
    model.load_lora_adapter(adapter, weight_name="adapter_model.safetensors", prefix="base_model.model")
    out["folded/loaded"] = calls[cls](model)
for name, (code, part) in jobs["cards"].items():
    names = {}
    exec(code, names)
    model = getattr(names["pipe"], part) if "pipe" in names else names["model"]
    adapters = [p for k, p in model.named_parameters() if "lora_B" in k]
    out[f"card/{name}"] = torch.tensor([float(len(adapters)), sum(float(p.abs().sum()) for p in adapters)])
assert not any(name.split(".")[0] == "percepta" for name in sys.modules)
save_file({k: v.float().contiguous() for k, v in out.items()}, sys.argv[2])
"""


def transformers(make, root):
    """Base, merged model and adapter of the transformers, in folders."""
    made = {}
    for kind in ("dit", "mmdit"):
        one, folder = make(kind), root / kind
        one.model.save_pretrained(folder / "base")
        adapter = attach(Lora(4), one.network, "base", 1)
        with torch.no_grad():
            for k, p in enumerate(p for p in one.model.parameters() if p.requires_grad):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.1)
        with adapter.merged():
            one.model.save_pretrained(folder / "merged")
        (folder / "adapter").mkdir()
        adapter.save(folder / "adapter")
        made[kind] = (type(one.model).__name__, str(folder))
    return made


FOLDED = {"dit-bitfit": BitFit(), "dit-diffit": DiffFit(), "dit-dora": Lora(2, dora=True), "mmdit-diffit": DiffFit(),
          "mmdit-dora": Lora(2, dora=True), "unet-diffit": DiffFit(), "unet-dora": Lora(2, dora=True)}  # fmt: skip


def small(kind):
    """Networks of three classes."""
    less = (
        {}
        if kind == "unet"
        else {"num_layers": 2, "attention_head_dim": 8} | ({"caption_projection_dim": 32} if kind == "mmdit" else {})
    )
    network = build(f"{kind}-pocket", channels=3, size=8, num_classes=3, overrides=less)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(9)) * 0.02)
    return network.eval()


def folded(root):
    """Folded models in folders, with what they have to give; and a DoRA beside its base."""
    jobs, wanted, dora = {}, {}, None
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 500.0])
    for name, peft in FOLDED.items():
        network, folder = small(name.split("-")[0]), root / "folded" / name
        network.save_pretrained(folder / "base")
        adapter = attach(peft, network, "base", 1, table=peft.names_table)
        with torch.no_grad():
            for k, p in enumerate(p for p in network.parameters() if p.requires_grad):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.1)
            wanted[name] = network(x, t, torch.tensor([0, 1]))
        with adapter.merged():
            network.save_pretrained(folder / "merged")
        (folder / "adapter").mkdir()
        adapter.save(folder / "adapter")
        jobs[name] = (type(network.model).__name__, str(folder / "merged"))
        if name == "mmdit-dora":
            dora = (jobs[name][0], str(folder / "base"), str(folder / "adapter"))
    return {"folded": jobs, "dora": dora}, {f"wanted/{name}": value for name, value in wanted.items()}


CARDS = ("run", "own pipeline", "bare")


def cards(make, root):
    """The code of the card of an adapter on each kind of base, and the part that it changes."""
    made = {}
    for name in CARDS:
        own = name == "own pipeline"
        network = make("ddpmpp").network if own else build("unet-pocket", channels=3, size=8, seed=0)
        base = root / "cards" / name.replace(" ", "-")
        export_pipeline(base / "model", Denoiser(network, EDM if own else Formulation(LinearBeta(), "noise")))
        given = base / "model" / "unet" if name == "bare" else base
        adapter = attach(Lora(2), network, str(given), 1)
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.1 * p.requires_grad)
        (base / "adapter").mkdir()
        adapter.save(base / "adapter")
        text = (base / "adapter" / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
        assert code.count("FOLDER") == 1
        made[name] = (code.replace("FOLDER", str(base / "adapter")), "unet")
    return made


@pytest.fixture(scope="module")
def found(tiny, make, tmp_path_factory):
    """What the other process made."""
    root = tmp_path_factory.mktemp("plain")
    flags = {"data": "shapes:length=20", "size": 8, "batch": 4, "conditional": "no", "sample_every": 0, "device": "cpu"}
    run = train(
        Ddpm(),
        Settings(**flags, steps=8, lr=2e-2, init=tiny.pipeline, peft="lora", lora_rank=4, ema="none", out=root / "run"),
        True,
    )
    more, wanted = folded(root)
    jobs = {**more, "run": str(run.folder), "base": tiny.pipeline, "models": transformers(make, root), "cards": cards(make, root)}
    (root / "jobs.json").write_text(json.dumps(jobs))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf")}
    env.pop("PYTHONPATH", None)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(root / "jobs.json"), str(root / "out.safetensors")],
        capture_output=True, text=True, env=env, cwd=root,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    return load_file(root / "out.safetensors") | wanted


@pytest.mark.parametrize("name", FOLDED)
def test_what_folds_is_an_ordinary_model(found, name):
    assert torch.allclose(found[f"folded/{name}"], found[f"wanted/{name}"], atol=2e-5)


def test_a_dora_is_read_by_diffusers_on_its_base(found):
    assert torch.allclose(found["folded/loaded"], found["wanted/mmdit-dora"], atol=2e-5)


@pytest.mark.parametrize("kind", ["", "dit/", "mmdit/"])
def test_base_and_adapter_are_the_merged_pipeline(found, kind):
    merged, base, adapter = (found[f"{kind}{name}"] for name in ("merged", "base", "adapter"))
    assert (merged - base).abs().max() > 1e-2
    assert torch.allclose(adapter, merged, atol=1e-4)


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_the_card_runs_as_it_stands(found, name):
    """For a run, for a pipeline whose class lies in its folder, and for a model without a pipeline."""
    layers, size = found[f"card/{name}"].tolist()
    assert layers > 3
    assert size > 0
