"""Runs with --peft lora: small checkpoints, exact resume, a base that may not change, and a plain pipeline with its adapter beside it."""

import json
import shutil
import typing

import pytest
import torch
from diffusers import DDPMPipeline
from processes import digest as files
from processes import lines
from safetensors.torch import load_file

from percepta.cli import main
from percepta.networks import adapt, load_model
from percepta.peft import Lora
from percepta.recipes import recipes
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.mmd import TrainMmd
from percepta.training.adapting import METHODS, adapt_method
from percepta.training.data import open_data
from percepta.training.job import build_method, train
from percepta.training.precision import autocast
from percepta.training.recipe import Context
from percepta.training.reopen import export_run
from percepta.training.settings import Settings

FLAGS = {"data": "shapes:length=20", "size": 8, "steps": 4, "batch": 4, "conditional": "no", "sample_every": 0, "log_every": 1,
         "checkpoint_every": 2, "device": "cpu", "peft": "lora", "lora_rank": 4, "lr": 1e-2}  # fmt: skip
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "init": tiny.pipeline, "out": out, **changed})


def run(tiny, out, recipe=None, **changed):
    return train(recipe or Ddpm(), settings(tiny, out, **changed), quiet=True).folder


@pytest.fixture(scope="module")
def done(dropping, tmp_path_factory):
    return run(dropping, tmp_path_factory.mktemp("run") / "run", ema_decay=0.5)


def test_every_choice_of_the_flag_makes_a_method():
    choices = typing.get_args(typing.get_type_hints(Settings)["peft"])
    assert choices == ("full", *METHODS)
    asked = Settings(peft="lora", init="base", lora_rank=2, lora_alpha=6, lora_targets="to_q, mid_block")
    assert METHODS["lora"](asked) == Lora(2, 6, ("to_q", "mid_block"))


def test_a_checkpoint_holds_what_is_trained_and_no_more(done, dropping):
    kept = done / "checkpoint-4"
    base = sum(p.numel() for p in DDPMPipeline.from_pretrained(dropping.pipeline).unet.parameters())
    resolved = json.loads((done / "config.json").read_text())["resolved"]
    facts = resolved["peft"]
    for stem in ("weights-model", "ema", "optimizer-model"):
        tensors = load_file(kept / f"{stem}.safetensors")
        assert all(".lora_" in name for name in tensors)
    weights = load_file(kept / "weights-model.safetensors")
    assert sum(x.numel() for x in weights.values()) == facts["trained"] < 0.3 * base
    assert facts["base"]["parameters"] == resolved["parameters"] == base
    assert (facts["method"], facts["rank"], facts["alpha"]) == ("lora", 4, 4)
    assert facts["base"]["name"] == dropping.pipeline
    assert json.loads((kept / "state.json").read_text())["bases"] == {"model": facts["base"]["sha256"]}


def test_the_model_is_a_plain_pipeline(done, dropping):
    base, merged = load_file(f"{dropping.pipeline}/{WEIGHTS}"), load_file(done / "model" / WEIGHTS)
    assert base.keys() == merged.keys()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    layers = json.loads((done / "config.json").read_text())["resolved"]["peft"]["layers"]
    assert changed == {f"{name}.weight" for name in layers}
    assert {p.name for p in (done / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert "merged" in (done / "model" / "README.md").read_text()


def test_resumed_is_the_same_run(done, dropping, tmp_path):
    run(dropping, tmp_path / "run", ema_decay=0.5, steps=2)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "adapter")
    run(dropping, tmp_path / "run", ema_decay=0.5, steps=4, resume=True)
    assert files(tmp_path / "run") == files(done)


def test_export_gives_what_the_run_gave(done, tmp_path):
    export_run(recipes(), done, tmp_path / "out")
    export_run(recipes(), done, tmp_path / "alone", adapter=True)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (done / "model" / WEIGHTS).read_bytes()
    for file in (done / "adapter").iterdir():
        assert (tmp_path / "alone" / file.name).read_bytes() == file.read_bytes()
    export_run(recipes(), done, tmp_path / "alone", step=2, adapter=True, raw=True)  # an earlier adapter may be replaced
    name = "adapter_model.safetensors"
    assert (tmp_path / "alone" / name).read_bytes() != (done / "adapter" / name).read_bytes()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is no earlier adapter"):
        export_run(recipes(), done, tmp_path / "full", adapter=True)


def test_any_length_of_average_can_be_had_afterwards(dropping, tmp_path):
    own = run(dropping, tmp_path / "run", ema="power", ema_snapshot_every=1)
    exported = {}
    for length in (0.02, 0.2):
        export_run(recipes(), own, tmp_path / str(length), ema_length=length)
        exported[length] = load_file(tmp_path / str(length) / WEIGHTS)
    assert exported[0.02].keys() == load_file(own / "model" / WEIGHTS).keys()
    assert any(not torch.equal(exported[0.02][k], x) for k, x in exported[0.2].items())


def test_a_report_says_that_an_adapter_was_trained(done, tmp_path):
    assert main(["report", str(done), "--out", str(tmp_path / "report.html")]) == 0
    assert "weights of lora" in (tmp_path / "report.html").read_text()


def test_a_run_of_all_weights_has_no_adapter(tiny, tmp_path):
    full = run(tiny, tmp_path / "run", steps=1, peft="full", lora_rank=8)
    assert not (full / "adapter").exists()
    with pytest.raises(ValueError, match="trained all weights"):
        export_run(recipes(), full, tmp_path / "out", adapter=True)


def test_a_base_that_changed_is_refused(dropping, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(dropping.pipeline, base)
    own = run(dropping, tmp_path / "run", steps=2, init=str(base))
    pipe = DDPMPipeline.from_pretrained(base)
    with torch.no_grad():
        pipe.unet.time_embedding.linear_1.bias[0] += 1e-4
    pipe.save_pretrained(base)
    with pytest.raises(ValueError, match="checkpoint-2 holds an adapter .* --init .*base have .* changed"):
        run(dropping, own, steps=4, init=str(base), resume=True)
    with pytest.raises(ValueError, match="changed"):
        export_run(recipes(), own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changed", [{"lora_rank": 2}, {"lora_alpha": 8}, {"lora_targets": "to_q"}, {"peft": "full", "lora_rank": 8}]
)
def test_other_adapters_do_not_continue_a_run(done, dropping, changed):
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=rf"was started with --{key.replace('_', '-')} .*now {value}"):
        run(dropping, done, ema_decay=0.5, steps=6, resume=True, **changed)


def test_a_run_older_than_a_flag_goes_on(tiny, tmp_path):
    old = run(tiny, tmp_path / "run", steps=2, peft="full", lora_rank=8)
    config = json.loads((old / "config.json").read_text())
    for name in ("peft", "lora_rank", "lora_alpha", "lora_targets"):
        del config["settings"][name]
    (old / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was started with --peft full .now lora"):
        run(tiny, old, steps=3, resume=True, lora_rank=8)
    run(tiny, old, steps=3, resume=True, peft="full", lora_rank=8)
    assert (old / "checkpoint-3").is_dir()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"init": None}, "--peft lora .* say which with --init"),
        ({"peft": "full"}, "--lora-rank 4 is for adapters: add --peft lora"),
        ({"peft": "full", "lora_rank": 8, "lora_targets": "to_q"}, "--lora-targets to_q is for adapters"),
        ({"lora_rank": 0}, "--lora-rank and --lora-alpha must be at least 1"),
        ({"lora_targets": "to_q, to_z"}, "--lora-targets to_z: no linear .* near are .*to_q"),
    ],
)
def test_wrong_use_is_told_before_training(tiny, tmp_path, changed, said):
    with pytest.raises(ValueError, match=said):
        run(tiny, tmp_path / "run", **changed)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_which_of_two_networks_is_not_guessed(tiny):
    method = Ddpm().build(Context(3, 8, network=tiny.network))
    method.model.second = adapt(load_model(tiny.network))
    with pytest.raises(ValueError, match="adapts the one denoising network of --init, and this recipe trains 2"):
        adapt_method(method, settings(tiny, None))


def test_the_command_line_repeats_a_run_by_its_config(done, tmp_path):
    assert main(["train", "ddpm", "--config", str(done / "config.json"), "--out", str(tmp_path / "again")]) == 0
    for name in (f"model/{WEIGHTS}", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (done / name).read_bytes()


def adapter(folder):
    return torch.cat([x.flatten() for _, x in sorted(load_file(folder / "adapter" / "adapter_model.safetensors").items())])


def test_memory_savers_change_nothing_but_the_last_bits(tiny, tmp_path):
    made = {
        name: adapter(run(tiny, tmp_path / name, steps=2, ema="none", clip=None, **changed))
        for name, changed in {
            "plain": {}, "again": {"gradient_checkpointing": True}, "micro": {"micro_batch": 2}, "bf16": {"mixed_precision": "bf16"},
        }.items()
    }  # fmt: skip
    assert torch.allclose(made["again"], made["plain"], atol=1e-6)
    assert torch.allclose(made["micro"], made["plain"], atol=2e-3)  # Adam's first steps amplify the last digits of small gradients
    assert (made["micro"] - made["plain"]).abs().mean() < 1e-5
    assert 0 < (made["bf16"] - made["plain"]).abs().mean() < 5e-3


def turn_gradients(tiny, backprop, mixed="no"):
    """Gradients of the adapters after one turn of MMD-DDM, from adapters that are not at zero."""
    from percepta.distributed import World
    from percepta.rng import Rng

    recipe = TrainMmd(space="pixels", sampler_steps=3, backprop=backprop)
    chosen = settings(tiny, None, micro_batch=2)
    data = open_data(chosen, World(), torch.device("cpu"), lambda text: None)
    method = build_method(recipe, chosen, data)
    params = [p for p in method.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for k, p in enumerate(params):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.05)
    (ordinals, batch) = next(data.batches(0, 1))
    with autocast(mixed, torch.device("cpu")):
        (turn,) = method.step(batch, Rng(0, ordinals))
    if turn.backward is None:
        torch.autograd.backward(turn.loss, inputs=params)
    else:
        turn.backward(1.0)
    return method, torch.cat([p.grad.flatten() for p in params])


def test_the_chain_of_mmd_gives_adapters_the_whole_graphs_gradient(dropping):
    method, replayed = turn_gradients(dropping, "replay")
    _, whole = turn_gradients(dropping, "full")
    assert whole.norm() > 0
    assert (replayed - whole).norm() <= 1e-5 * whole.norm()
    assert all(p.grad is None for p in method.model.parameters() if not p.requires_grad)


def test_bf16_gives_adapters_the_gradient_to_its_digits(dropping):
    """Adapters are float32 and the autocast of a replay keeps no casts of them: a stale one would cost their gradient."""
    _, exact = turn_gradients(dropping, "replay")
    for way in ("replay", "full"):
        _, found = turn_gradients(dropping, way, "bf16")
        assert found.dtype == torch.float32
        assert 1e-5 * exact.norm() < (found - exact).norm() < 0.05 * exact.norm(), way


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_mmd_trains_an_adapter_end_to_end(tiny, tmp_path, mixed):
    made = run(tiny, tmp_path / "run", TrainMmd(space="pixels", sampler_steps=2), steps=2, ema="none", mixed_precision=mixed)
    assert {x.dtype for x in load_file(made / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}
    assert (made / "adapter" / "adapter_config.json").is_file()
    assert len(lines(made)) == 2
    assert main(["sample", str(made), "--num", "2", "--out", str(tmp_path / "two.png")]) == 0
