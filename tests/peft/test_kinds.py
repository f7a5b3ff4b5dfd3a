"""Runs with every method: exact resume, small checkpoints, other classes, and a run that has no plain model."""

import json
import shutil

import pytest
import torch
from diffusers import DiTTransformer2DModel
from processes import digest as files
from safetensors.torch import load_file

from percepta.cli import main
from percepta.formulation import Denoiser, Formulation
from percepta.interop import export_pipeline, load_pipeline
from percepta.networks import build
from percepta.path import LinearBeta
from percepta.recipes import recipes
from percepta.recipes.ddpm import Ddpm
from percepta.training.job import train
from percepta.training.reopen import export_run
from percepta.training.settings import Settings

FLAGS = {"data": "shapes:length=24,labels=shape", "size": 8, "steps": 4, "batch": 4, "sample_every": 0, "log_every": 1, "checkpoint_every": 2,
         "device": "cpu", "lr": 1e-2, "ema_decay": 0.5}  # fmt: skip
CLASSES = 8  # of the data


def shaken(network):
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) * 0.05)
    return network


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A DiT of two blocks with one embedding, of other classes than the data."""
    network = build("dit-pocket", channels=3, size=8, num_classes=5, overrides={"num_layers": 2, "attention_head_dim": 4})
    first, second = shaken(network).model.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    folder = tmp_path_factory.mktemp("base") / "pipeline"
    export_pipeline(folder, Denoiser(network, Formulation(LinearBeta(), "noise")))
    return str(folder)


def run(base, out, **changed):
    return train(Ddpm(), Settings(**{**FLAGS, "init": base, "out": out, **changed}), quiet=True).folder


def facts(folder):
    return json.loads((folder / "config.json").read_text())["resolved"]["peft"]


@pytest.fixture(scope="module")
def diffit(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("diffit") / "run", peft="diffit")


def test_diffit_on_other_classes_resumes_to_the_bit(diffit, base, tmp_path):
    run(base, tmp_path / "run", peft="diffit", steps=2)
    for part in ("model", "adapter"):
        shutil.rmtree(tmp_path / "run" / part)
    run(base, tmp_path / "run", peft="diffit", resume=True)
    assert files(tmp_path / "run") == files(diffit)


def test_what_a_run_of_diffit_keeps(diffit, base):
    told = facts(diffit)
    assert told["class_table"] == "new"
    assert told["fraction"] == told["trained"] / told["base"]["parameters"] < 0.2
    for stem in ("weights-model", "ema"):
        kept = load_file(diffit / "checkpoint-4" / f"{stem}.safetensors")
        assert sum(x.numel() for x in kept.values()) == told["trained"]
    (table,) = [x for name, x in kept.items() if "embedding_table" in name]
    assert len(table) == CLASSES + 1
    folded = DiTTransformer2DModel.from_pretrained(diffit / "model" / "transformer")
    assert folded.config["num_embeds_ada_norm"] == CLASSES
    assert {len(b.norm1.emb.class_embedder.embedding_table.weight) for b in folded.transformer_blocks} == {CLASSES + 1}
    name = "norm1.emb.class_embedder.embedding_table.weight"
    was = DiTTransformer2DModel.from_pretrained(f"{base}/transformer").transformer_blocks[0].get_parameter(name)[-1]
    assert (folded.transformer_blocks[1].get_parameter(name)[-1] - was).abs().max() < 0.2  # the null row goes on


def test_export_and_the_adapters_folder_give_the_runs_model(diffit, tmp_path):
    export_run(recipes(), diffit, tmp_path / "out")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (diffit / "model" / weights).read_bytes()
    plain, loaded = (load_pipeline(diffit / part).denoiser.network for part in ("model", "adapter"))
    assert plain.num_classes == loaded.num_classes == CLASSES
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 400.0]), torch.tensor([1, CLASSES])
    assert torch.allclose(plain(x, time, labels), loaded(x, time, labels), atol=1e-6)


def test_a_run_of_prompts_has_no_plain_model_and_is_sampled_as_it_is(base, tmp_path):
    made = run(base, tmp_path / "run", peft="vpt", prompt_tokens=2, steps=2)
    assert not (made / "model").exists()
    assert main(["sample", str(made), "--num", "2", "--steps", "2", "--guidance", "2", "--out", str(tmp_path / "two.png")]) == 0
    pipeline = load_pipeline(made)
    assert pipeline.class_names is not None
    assert len(pipeline.class_names) == CLASSES
    with pytest.raises(ValueError, match="what vpt adds cannot be folded .* --adapter"):
        export_run(recipes(), made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(recipes(), made, tmp_path / "alone", adapter=True)
    with pytest.raises(ValueError, match=r"holds an adapter \(vpt\) .* start from its base"):
        run(str(made), tmp_path / "next", steps=1)


@pytest.mark.parametrize("method", ["bitfit", "dora", "adaptformer"])
def test_every_method_trains(method, base, tmp_path):
    changed = (
        {"micro_batch": 2} if method == "bitfit" else {"gradient_checkpointing": True} if method == "dora" else {"ema": "power"}
    )
    made = run(base, tmp_path / "run", peft=method, steps=2, **changed)
    assert facts(made)["method"] == method
    kept = load_file(made / "checkpoint-2" / "weights-model.safetensors")
    assert sum(x.numel() for x in kept.values()) == facts(made)["trained"]
    assert (made / "adapter" / "adapter_config.json").is_file()
    assert (made / "model").is_dir() == (method != "adaptformer")
    if method == "dora":
        assert (made / "adapter" / "class_table.safetensors").is_file()
    assert main(["report", str(made), "--out", str(tmp_path / "r.html")]) == 0
    assert f"weights of {method} (" in (tmp_path / "r.html").read_text()


def test_all_weights_take_other_classes_when_told_to(base, tmp_path):
    with pytest.raises(ValueError, match="has 5 classes, the data has 8: .* --class-table new"):
        run(base, tmp_path / "run", steps=1)
    made = run(base, tmp_path / "new", class_table="new", steps=1)
    assert DiTTransformer2DModel.from_pretrained(made / "model" / "transformer").config["num_embeds_ada_norm"] == CLASSES


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peft": "vpt", "lora_rank": 4}, "--lora-rank 4 is for adapters: add --peft lora or dora"),
        ({"peft": "lora", "prompt_tokens": 4}, "--prompt-tokens 4 is for adapters: add --peft vpt"),
        ({"peft": "diffit", "bottleneck": 4}, "--bottleneck 4 is for adapters: add --peft adaptformer"),
        ({"peft": "vpt", "prompt_tokens": 0}, "--prompt-tokens and --bottleneck must be at least 1, got 0"),
        ({"class_table": "keep"}, "--class-table keep is for adapters"),
        ({"init": None, "class_table": "new"}, "--class-table new is about the model of --init"),
        ({"peft": "diffit", "class_table": "keep"}, "--init has 5 classes, the data has 8"),
        ({"peft": "diffit", "class_table": "new", "conditional": "no"}, "--class-table new makes a row for each class"),
    ],
)
def test_wrong_use_is_told_before_training(base, tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        run(base, tmp_path / "run", **changed)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_network_without_classes_gets_a_table_only_when_told_to(tiny, tmp_path):
    with pytest.raises(ValueError, match="--init has no classes, the data has 8: .* --class-table new"):
        run(tiny.pipeline, tmp_path / "run", peft="lora")
    made = run(tiny.pipeline, tmp_path / "new", peft="lora", class_table="new", steps=1)
    assert len(load_file(made / "adapter" / "class_table.safetensors")["class_embedding.weight"]) == CLASSES + 1
