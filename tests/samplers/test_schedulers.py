"""diffusers' schedulers as samplers: they agree with ours where both exist, and reach the data where only theirs does."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from percepta.formulation import EDM, FLOW, Formulation
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.samplers import sample, with_scheduler

ON = {
    LinearBeta(): ["DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep",
                   "UniPCMultistep", "DEISMultistep", "LMSDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "PNDM"],
    Rectified(): ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"],
    VarianceExploding(): ["EDMEuler", "EDMDPMSolverMultistep"],
}  # fmt: skip
CASES = [(path, name) for path, names in ON.items() for name in names]


def rng(count=16, first=0):
    return rng_for(0, first, count, stream="sample")


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # numpy's, from within a scheduler
@pytest.mark.parametrize(("path", "name"), CASES, ids=[name for _, name in CASES])
def test_every_scheduler_reaches_the_data(path, name, gaussian):
    images = with_scheduler(gaussian(path), name, 30, shape=(3, 8, 8), rng=rng())
    assert images.std().item() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete", "UniPCMultistep"])
def test_an_image_does_not_depend_on_its_batch(name, gaussian):
    whole = with_scheduler(gaussian(LinearBeta()), name, 10, shape=(3, 4, 4), rng=rng(5))
    assert torch.equal(whole, with_scheduler(gaussian(LinearBeta()), name, 10, shape=(3, 4, 4), rng=rng(5), batch_size=2))
    assert torch.equal(whole[3:], with_scheduler(gaussian(LinearBeta()), name, 10, shape=(3, 4, 4), rng=rng(2, 3)))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("output", ["noise", "clean", "velocity"])
def test_every_output_feeds_every_prediction_type(output, prediction, denoiser):
    ours = denoiser(Formulation(LinearBeta(), output))
    theirs = with_scheduler(ours, DDIMScheduler(clip_sample=False, prediction_type=prediction), 8, shape=(3, 8, 8), rng=rng(2))
    expected = sample(ours, "ddim", 8, shape=(3, 8, 8), rng=rng(2))
    assert (theirs - expected).abs().max() < 2e-4 * expected.abs().max().clamp(min=1)


def test_a_cosine_path_gets_its_own_betas(denoiser):
    ours = denoiser(Formulation(Cosine(), "clean"))
    assert torch.allclose(
        with_scheduler(ours, "DDIM", 8, shape=(3, 8, 8), rng=rng(2)),
        sample(ours, "ddim", 8, shape=(3, 8, 8), rng=rng(2)),
        atol=5e-4,
    )


def test_flow_and_edm(denoiser):
    flow = denoiser(FLOW)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    expected = sample(flow, "euler", scheduler.sigmas.double(), shape=(3, 8, 8), rng=rng(2))
    assert torch.allclose(with_scheduler(flow, scheduler, 8, shape=(3, 8, 8), rng=rng(2)), expected, atol=1e-4)
    dpm = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert with_scheduler(flow, dpm, 8, shape=(3, 8, 8), rng=rng(2)).isfinite().all()
    edm = denoiser(EDM)
    expected = sample(edm, "euler", 8, shape=(3, 8, 8), rng=rng(2))
    theirs = with_scheduler(edm, "EDMEuler", 8, shape=(3, 8, 8), rng=rng(2))
    # theirs starts from deviation sqrt(80^2 + 1), ours from 80
    assert torch.allclose(theirs, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("path", "scheduler", "message"),
    [
        (LinearBeta(), "DDIMM", r"no sampler 'DDIMM', did you mean DDIM\?"),
        (Rectified(), "DDIM", "FlowMatch"),
        (LinearBeta(), "FlowMatchEulerDiscrete", "path Rectified"),
        (Cosine(), EulerDiscreteScheduler(), "another noise schedule"),
        (LinearBeta(), EulerDiscreteScheduler(num_train_timesteps=100), "another noise schedule"),
    ],
)
def test_refusals(path, scheduler, message, gaussian):
    with pytest.raises(ValueError, match=message):
        with_scheduler(gaussian(path), scheduler, 5, shape=(1, 2, 2), rng=rng(1))


def test_a_scheduler_that_draws_global_noise_is_refused(gaussian):
    class Careless(DDIMScheduler):
        def step(self, model_output, timestep, sample):
            torch.randn(1)
            return super().step(model_output, timestep, sample)

    with pytest.raises(ValueError, match="global generator"):
        with_scheduler(gaussian(LinearBeta()), Careless(beta_start=1e-4, beta_end=0.02), 5, shape=(1, 2, 2), rng=rng(1))


@pytest.mark.parametrize("name", ["UniPCMultistep", "DPMSolverMultistep", "DEISMultistep"])
def test_a_schedule_that_ends_in_noise_alone_is_not_begun_there(name, gaussian):
    """A network is never quite right; where sigma/alpha is 2e4 its x0 is noise, and a multistep solver carries it along."""
    exact = gaussian(Cosine())

    class Nearly:
        path = exact.path

        def __call__(self, x, t, cond=None):
            off = 0.01 * exact.path.level(t[:1]).item()
            return exact(x, t, cond) + off * torch.randn(x.shape, generator=torch.Generator().manual_seed(int(t[0] * 1000)))

    nearly = Nearly()
    images = with_scheduler(nearly, name, 10, shape=(3, 8, 8), rng=rng())
    assert images.std().item() == pytest.approx(0.5, rel=0.3)
    assert with_scheduler(nearly, name, 10, shape=(3, 8, 8), rng=rng(), spacing="linspace").std() > 1  # what it is kept from


def test_a_name_takes_a_spacing_that_its_scheduler_has(gaussian):
    denoiser, shape = gaussian(LinearBeta()), (1, 4, 4)
    trailing = with_scheduler(denoiser, "DDIM", 5, shape=shape, rng=rng(), spacing="trailing")
    by_hand = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    assert torch.allclose(trailing, with_scheduler(denoiser, by_hand, 5, shape=shape, rng=rng()), atol=1e-5)
    assert not torch.allclose(trailing, with_scheduler(denoiser, "DDIM", 5, shape=shape, rng=rng()), atol=1e-3)
    for name, spacing in (("DDIM", "quadratic"), ("PNDM", "karras")):
        with pytest.raises(ValueError, match=f"{name}Scheduler cannot take the spacing '{spacing}'; known: leading"):
            with_scheduler(denoiser, name, 5, shape=shape, rng=rng(), spacing=spacing)
    with pytest.raises(ValueError, match="EDMEulerScheduler cannot take the spacing 'leading'; it has one of its own"):
        with_scheduler(gaussian(VarianceExploding()), "EDMEuler", 5, shape=shape, rng=rng(), spacing="leading")
    with pytest.raises(ValueError, match="ready-made: give timestep_spacing to it"):
        with_scheduler(denoiser, by_hand, 5, shape=shape, rng=rng(), spacing="leading")
