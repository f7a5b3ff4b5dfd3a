"""Each sampler against diffusers' scheduler, on one real U-Net, from the same start, with the same noise injected."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from percepta.formulation import EDM, FLOW, Formulation, noise_of
from percepta.path import Cosine, LinearBeta
from percepta.rng import rng_for
from percepta.samplers import ddim, ddpm, dpmpp_2m, euler, grid, heun, integrate, step_noise

VP = LinearBeta()
RNG = rng_for(3, 0, 2, stream="sample")
Z = RNG.normal("x_T", (3, 8, 8))


def inject(monkeypatch, module, noises):
    """Let a diffusers scheduler draw our noise, in order."""
    drawn = iter(noises)
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda shape, **options: next(drawn).reshape(shape))


def noises(step, count, x):
    return [step_noise(step, RNG, i, x) for i in range(count)]


def own_time(k, num_steps=1000):
    return torch.full((2,), (float(k) + 1) / num_steps, dtype=torch.float64)


def loop(denoiser, scheduler, x, path=VP, prediction="epsilon"):
    """diffusers' loop over our denoiser's network, eps-, x0- or v-fed."""
    for k in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, k)
        t = own_time(k)
        x0, taps = denoiser.full(x_t, t)
        output = {"epsilon": noise_of(x0, x_t, t, path), "sample": x0}[prediction]
        if taps.get("extra") is not None:
            output = torch.cat([output, taps["extra"]], 1)
        x = scheduler.step(output, k, x).prev_sample
    return x


def exactly(scheduler, path):
    """The scheduler's table in float64, so that arithmetic is compared and not the round-off of a product of 1000 floats."""
    scheduler.alphas_cumprod = path.abar[1:].clone()
    scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # on linspace theirs steps to t - T//S, which its list does not hold
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, clip, spacing, denoiser, monkeypatch):
    ours, step = denoiser().double(), ddim(eta, clip)
    scheduler = exactly(DDIMScheduler(clip_sample=clip is not None, timestep_spacing=spacing), VP)
    scheduler.set_timesteps(10)
    x, draws = Z.double(), noises(ddim(1.0), 10, Z.double())
    inject(monkeypatch, "scheduling_ddim", draws)
    expected = x
    for k in scheduler.timesteps:
        t = own_time(k)
        eps = noise_of(ours(expected, t), expected, t, VP)
        expected = scheduler.step(eps, k, expected, eta=eta).prev_sample
    got = integrate(step, ours, x, grid(VP, 10, spacing), rng=RNG)
    assert (got - expected).abs().max() < 1e-9


def test_ddim_clipping_can_recompute_the_noise(denoiser):
    ours = denoiser().double()
    scheduler = exactly(DDIMScheduler(clip_sample=True), VP)
    scheduler.set_timesteps(10)
    expected = Z.double()
    for k in scheduler.timesteps:
        t = own_time(k)
        eps = noise_of(ours(expected, t), expected, t, VP)
        expected = scheduler.step(eps, k, expected, use_clipped_model_output=True).prev_sample
    got = integrate(ddim(clip=(-1, 1), clip_noise=True), ours, Z.double(), grid(VP, 10))
    other = integrate(ddim(clip=(-1, 1)), ours, Z.double(), grid(VP, 10))
    assert (got - expected).abs().max() < 1e-9
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
@pytest.mark.parametrize("path", [VP, Cosine()])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_ddpm(path, variance, clip, denoiser, monkeypatch):
    ours = denoiser(Formulation(path, "clean"), 6 if variance == "learned" else 3).double()
    schedule = {"beta_schedule": "squaredcos_cap_v2"} if isinstance(path, Cosine) else {}
    kind = "learned_range" if variance == "learned" else variance
    scheduler = exactly(DDPMScheduler(clip_sample=clip is not None, variance_type=kind, prediction_type="sample", **schedule), path)
    scheduler.set_timesteps(20)
    step, x = ddpm(variance, clip), Z.double()
    inject(monkeypatch, "scheduling_ddpm", noises(step, 20, x))
    expected = loop(ours, scheduler, x, path, "sample")
    got = integrate(step, ours, x, grid(path, 20), rng=RNG)
    assert (got - expected).abs().max() < 1e-9


def test_the_whole_chain_in_float32(denoiser, monkeypatch):
    """Nothing adjusted: 1000 ancestral steps' worth of table in float32, diffusers as it comes."""
    ours, scheduler, step = denoiser(), DDPMScheduler(clip_sample=False), ddpm()
    scheduler.set_timesteps(50)
    inject(monkeypatch, "scheduling_ddpm", noises(step, 50, Z))
    got, expected = integrate(step, ours, Z, grid(VP, 50), rng=RNG), loop(ours, scheduler, Z)
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize(
    ("cls", "step", "options"),
    [
        (EulerDiscreteScheduler, euler(), {}),
        (HeunDiscreteScheduler, heun(), {}),
        (DPMSolverMultistepScheduler, dpmpp_2m(), {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    ],
)
def test_ode_solvers_on_a_discrete_path(cls, step, options, spacing, prediction, denoiser):
    ours = denoiser(Formulation(VP, "noise" if prediction == "epsilon" else "clean"))
    scheduler = cls(timestep_spacing=spacing, prediction_type=prediction, beta_start=1e-4, beta_end=0.02, **options)
    scheduler.set_timesteps(20)
    k = scheduler.timesteps.double().unique().flip(0)  # Heun's list names the inner ones twice
    times = torch.cat([VP.time_of(k), torch.zeros(1, dtype=torch.float64)])
    theirs = Z * float(scheduler.init_noise_sigma)
    start = Z.clone() if cls is DPMSolverMultistepScheduler else theirs / (VP.level(times[:1]) ** 2 + 1).sqrt().float()
    expected = loop(ours, scheduler, theirs, VP, prediction)
    got = integrate(step, ours, start, times)
    assert (got - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize(("cls", "step"), [(FlowMatchEulerDiscreteScheduler, euler()), (FlowMatchHeunDiscreteScheduler, heun())])
def test_flow_matching(cls, step, denoiser):
    ours, scheduler = denoiser(FLOW), cls(shift=3.0)
    scheduler.set_timesteps(12)
    expected = Z
    for k in scheduler.timesteps:
        t = torch.full((2,), float(k) / 1000, dtype=torch.float64)
        raw = ours.full(expected, t)[1]["output"]
        expected = scheduler.step(raw, k, expected).prev_sample
    times = torch.cat([scheduler.timesteps.double().unique().flip(0) / 1000, torch.zeros(1, dtype=torch.float64)])
    assert (integrate(step, ours, Z, times) - expected).abs().max() < 2e-5


def test_edm_euler(denoiser):
    ours, scheduler = denoiser(EDM), EDMEulerScheduler()
    scheduler.set_timesteps(18)
    times = scheduler.sigmas.double()
    x = expected = Z * 80.0
    for i, k in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(expected, k)
        raw = ours.full(expected, times[i].expand(2).clone())[1]["output"]
        expected = scheduler.step(raw, k, expected).prev_sample
    assert (integrate(euler(), ours, x, times) - expected).abs().max() < 1e-4


def test_edm_heun_is_algorithm_1(denoiser):
    """Against the paper's algorithm, written out; 35 evaluations at 18 steps."""
    ours = denoiser(EDM).double()
    times, x = grid(EDM.path, 18), Z.double() * 80
    expected, calls = x, 0

    def slope(x, sigma):
        nonlocal calls
        calls += 1
        return (x - ours(x, torch.full((2,), sigma, dtype=torch.float64))) / sigma

    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        d = slope(expected, t)
        proposal = expected + (s - t) * d
        if s != 0:
            proposal = expected + (s - t) * (d + slope(proposal, s)) / 2
        expected = proposal
    assert (integrate(heun(), ours, x, times) - expected).abs().max() < 1e-10
    assert calls == 35 == heun().evaluations(times)
