"""What the network of a path with other than 1000 steps reads as its time: diffusers' numbers, or improved-diffusion's scale."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from processes import FLAGS

from percepta.interop import load_pipeline
from percepta.networks import adapt
from percepta.networks.ddpmpp import DDPMPP
from percepta.recipes import recipes
from percepta.recipes.casdm import CasDm
from percepta.recipes.ddpm import Ddpm
from percepta.rng import rng_for
from percepta.sampling import Drawing, Job
from percepta.training.job import train
from percepta.training.recipe import Context
from percepta.training.settings import Settings

CONTEXT = Context(3, 8, network="unet-pocket")


def read_times(method, unet, ks):
    """What the first layer of a U-Net is given at these timesteps."""
    seen = []
    handle = unet.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    path = method.model.path
    with torch.no_grad():
        method.model(torch.zeros(len(ks), 3, 8, 8), path.time_of(ks))
    handle.remove()
    return seen[0].double()


@pytest.mark.parametrize("steps", [1000, 4000])
def test_what_networks_read(steps):
    """ddpm shows k as schedulers count; rescaled it shows what the cascade's U-Nets are shown, to the bit."""
    ks = torch.tensor([0, 1, 999, steps // 2, steps - 1])
    plain, scaled = (Ddpm(timesteps=steps, rescale_timesteps=on).build(CONTEXT) for on in (False, True))
    cascade = CasDm(timesteps=steps).build(CONTEXT)
    assert torch.allclose(read_times(plain, plain.model.network.model, ks), ks.double(), atol=1e-3)
    got = read_times(scaled, scaled.model.network.model, ks)
    assert torch.allclose(got, ks.double() * 1000 / steps, atol=1e-3)
    assert torch.equal(got, read_times(cascade, cascade.model.network.model.theta, ks))
    assert ("_percepta" in scaled.model.network.model.config) == (steps != 1000), "at 1000 steps both are one"


def run(tiny, out, knobs, **changed):
    settings = Settings(**{**FLAGS, "network": tiny.network, "steps": 2, "out": out, **changed})
    return train(Ddpm(**knobs), settings, quiet=True).folder


@pytest.mark.parametrize("rescaled", [False, True])
def test_an_export_of_4000_steps_draws_the_same_in_plain_diffusers(tiny, tmp_path, rescaled):
    """Raw times make a stock pipeline; a scale needs the pipeline that travels with the weights."""
    done = run(tiny, tmp_path / "run", {"timesteps": 4000, "rescale_timesteps": rescaled}, ema="none", lr=1e-2)
    index = json.loads((done / "model" / "model_index.json").read_text())["_class_name"]
    assert (index if isinstance(index, str) else index[-1]) == ("PerceptaPipeline" if rescaled else "DDIMPipeline")
    pipe = DiffusionPipeline.from_pretrained(done / "model", local_files_only=True, trust_remote_code=rescaled)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler) and pipe.scheduler.config["num_train_timesteps"] == 4000
    seed = torch.Generator().manual_seed(0)
    theirs = pipe(batch_size=2, num_inference_steps=5, generator=seed, output_type="pt" if rescaled else "np").images
    theirs = theirs if rescaled else torch.from_numpy(theirs).permute(0, 3, 1, 2)
    drawing = Drawing(Job(source=done, num=2, steps=5, device="cpu"))
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = images_of(drawing, noise)
    torch.testing.assert_close((ours / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4, rtol=0)
    assert load_pipeline(done).denoiser.network.time_factor == (0.25 if rescaled else 1.0)


def images_of(drawing, noise):
    from percepta.samplers.interpolation import images_of_noise

    return images_of_noise(drawing.denoiser, drawing.how, noise)


def test_going_on_keeps_the_scale(tiny, tmp_path):
    first = run(tiny, tmp_path / "first", {"timesteps": 4000, "rescale_timesteps": True})
    onward = {"network": None, "init": str(first)}
    for name, knobs in {"said": {"rescale_timesteps": True}, "left open": {}}.items():
        again = run(tiny, tmp_path / name, knobs, **onward)
        assert load_pipeline(again).denoiser.network.time_factor == 0.25
    raw = run(tiny, tmp_path / "raw", {"timesteps": 4000})
    with pytest.raises(ValueError, match="leave --rescale-timesteps away"):
        run(tiny, tmp_path / "other", {"rescale_timesteps": True}, network=None, init=str(raw))


def test_a_resumed_run_reads_the_same_times(tiny, tmp_path):
    knobs = {"timesteps": 4000, "rescale_timesteps": True}
    whole = run(tiny, tmp_path / "whole", knobs)
    run(tiny, tmp_path / "parts", knobs, steps=1)
    parts = run(tiny, tmp_path / "parts", knobs, resume=True)
    noise = rng_for(0, 0, 2).normal("x", (3, 8, 8))
    images = [images_of(Drawing(Job(source=folder, num=2, steps=2, device="cpu")), noise) for folder in (whole, parts)]
    assert torch.equal(*images)


def test_a_scale_of_its_own_stays_with_a_cascade():
    """A cascade looks its noise level up by the timestep."""
    network = CasDm().build(CONTEXT).model.network
    with pytest.raises(ValueError, match="its time cannot be scaled outside"):
        network.scale_time(0.25)
    assert network.time_factor == 1.0 and "_percepta" not in network.model.config


def test_ncsnpp_is_refused_where_it_could_not_tell_times_apart(monkeypatch):
    small = {"sample_size": 8, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_sizes": ()}
    monkeypatch.setattr(Context, "chosen_network", lambda self, name: adapt(DDPMPP(**small, ncsn=True)))
    context = Context(channels=3, size=8)
    for name in ("ddpm", "flow"):
        with pytest.raises(ValueError, match="reads the logarithm of the noise level"):
            recipes()[name]().build(context)
    assert recipes()["edm"]().build(context) is not None
