"""Samplers against diffusers' schedulers on one network, and lean sampling against diffusers' DDIMPipeline (goal P16).

    python bench/samplers.py [--quick] [--json] [--threads N]

Part one runs each sampler and the diffusers scheduler that does the same, from the same start with the same network: the largest
difference (relative to the largest value), the network evaluations of each, and the time ratio theirs/ours as a median of interleaved
repeats. Part two is 5-step DDIM on the 35.7M U-Net of Ho et al. (2020): diffusers' pipeline in float32, ours in float32, ours in
bfloat16 channels_last. --quick takes a tiny network for part one and fewer images for part two. Weights are random: times are right,
images mean nothing.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import diffusers
import torch
from _common import about, finish, headline, interleaved, medians, parser, printer
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from percepta.formulation import EDM, FLOW, Denoiser, Formulation, noise_of
from percepta.networks import adapt, build
from percepta.path import LinearBeta, Times
from percepta.rng import Rng, rng_for
from percepta.samplers import Step, ddim, ddpm, dpmpp_2m, euler, heun, integrate, sample, start, step_noise

VP, STEPS = LinearBeta(), 10
TINY: dict[str, Any] = {
    "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


class Pair(NamedTuple):
    """A sampler and the scheduler that does the same."""

    name: str
    formulation: Formulation
    step: Step
    scheduler: Any


def pairs() -> list[Pair]:
    vp, beta = Formulation(VP), dict[str, Any](beta_start=1e-4, beta_end=0.02)
    clean = Formulation(VP, "clean")  # an untrained network's eps would send the noisy chains to 1e3: compare where digits last
    x0 = dict[str, Any](prediction_type="sample", clip_sample=False)
    return [
        Pair("ddpm", clean, ddpm(), diffusers.DDPMScheduler(**x0)),
        Pair("ddim", vp, ddim(), DDIMScheduler(clip_sample=False)),
        Pair("ddim-eta1", clean, ddim(1.0), DDIMScheduler(**x0)),
        Pair("euler", vp, euler(), diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **beta)),
        Pair("heun", vp, heun(), diffusers.HeunDiscreteScheduler(timestep_spacing="trailing", **beta)),
        Pair("dpmpp", vp, dpmpp_2m(), diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing", **beta)),
        Pair("euler-flow", FLOW, euler(), diffusers.FlowMatchEulerDiscreteScheduler()),
        Pair("heun-flow", FLOW, heun(), diffusers.FlowMatchHeunDiscreteScheduler()),
        Pair("euler-edm", EDM, euler(), diffusers.EDMEulerScheduler()),
    ]


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.path, self.calls = denoiser, denoiser.path, 0

    def __call__(self, x_t: Tensor, t: Times, cond: Any = None) -> Tensor:
        self.calls += 1
        return self.denoiser(x_t, t, cond)


def times_of(pair: Pair) -> Times:
    """The scheduler's own list, as our times."""
    pair.scheduler.set_timesteps(STEPS)
    steps = pair.scheduler.timesteps.double().unique().flip(0)
    if pair.formulation is EDM:
        return pair.scheduler.sigmas.double()
    times = steps / 1000 if pair.formulation is FLOW else VP.time_of(steps)
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def theirs(pair: Pair, denoiser: Counted, x: Tensor, noise: list[Tensor | None]) -> Tensor:
    """diffusers' loop, with our noise."""
    scheduler = pair.scheduler
    scheduler.set_timesteps(STEPS)
    draws = iter(noise)
    for module in (diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_ddim):
        vars(module)["randn_tensor"] = lambda *shape, **options: next(draws)
    options = {"eta": 1.0} if pair.name == "ddim-eta1" else {}
    for k in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, k) if hasattr(scheduler, "scale_model_input") else x
        sigma = float(scheduler.sigmas[scheduler.step_index]) if pair.formulation is EDM else 0.0
        t = torch.full(
            (len(x),), sigma or (float(k) / 1000 if pair.formulation is FLOW else (float(k) + 1) / 1000), dtype=torch.float64
        )
        denoiser.calls += 1
        x0, taps = denoiser.denoiser.full(x if pair.formulation is EDM else x_t, t)
        output = noise_of(x0, x_t, t, denoiser.path) if pair.formulation.output == "noise" else taps["output"]
        x = scheduler.step(output, k, x, **options).prev_sample
    return x


def unet(quick: bool) -> UNet2DModel:
    torch.manual_seed(0)
    model: Any = UNet2DModel(**TINY) if quick else build("unet-cifar").model
    torch.nn.init.normal_(model.conv_out.weight, std=0.02)
    return model.eval().requires_grad_(False)


def compare(model: Any, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    for pair in pairs():
        denoiser = Counted(Denoiser(adapt(model), pair.formulation))
        times = times_of(pair)
        rng: Rng = rng_for(0, 0, batch, stream="sample")
        z = rng.normal("x_T", (3, model.config.sample_size, model.config.sample_size))
        x = start(denoiser.path, float(times[0]), z)
        scaled = pair.name in ("euler", "heun")  # their samples are x/alpha
        x_theirs = x / denoiser.path.alpha(times[:1]).float() if scaled else x
        noise = [step_noise(pair.step, rng, i, x) for i in range(STEPS)]
        with torch.no_grad():
            expected, got = theirs(pair, denoiser, x_theirs, noise), None
            their_calls, denoiser.calls = denoiser.calls, 0
            got = integrate(pair.step, denoiser, x, times, rng=rng)
            calls = denoiser.calls
            sides = {
                "ours": lambda: integrate(pair.step, denoiser, x, times, rng=rng),  # noqa: B023
                "theirs": lambda: theirs(pair, denoiser, x_theirs, noise),  # noqa: B023
            }
            seconds = medians(interleaved(sides, repeats))
        difference = ((got - expected).abs().max() / expected.abs().max()).item()
        yield {"sampler": pair.name, "difference": difference, "nfe": calls, "their_nfe": their_calls,
                     "ratio": seconds["theirs"] / seconds["ours"], "ms": 1e3 * seconds["ours"]}  # fmt: skip


def lean(batch: int, repeats: int) -> dict[str, Any]:
    """P16: 5 steps of DDIM, images on the CPU as a float array at the end on every side."""
    model = unet(False)
    pipeline = DDIMPipeline(model, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    full = Denoiser(adapt(model), Formulation(VP))
    half = unet(False)
    half.load_state_dict(model.state_dict())
    half = Denoiser(adapt(half.to(torch.bfloat16, memory_format=torch.channels_last)), Formulation(VP))  # pyright: ignore[reportCallIssue, reportArgumentType]

    def ours(denoiser: Denoiser) -> Any:
        rng = rng_for(0, 0, batch, stream="sample")
        images = sample(denoiser, "ddim", 5, shape=(3, 32, 32), rng=rng, clip=(-1, 1), batch_size=batch)
        return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    sides = {
        "pipeline": lambda: pipeline(batch_size=batch, num_inference_steps=5, output_type="np"),
        "fp32": lambda: ours(full),
        "bf16": lambda: ours(half),
    }
    seconds = medians(interleaved(sides, repeats))
    return {"ms_per_image": {name: 1e3 * value / batch for name, value in seconds.items()},
            "fp32": seconds["pipeline"] / seconds["fp32"], "bf16": seconds["pipeline"] / seconds["bf16"],
            "bf16_difference": float(abs(ours(half) - ours(full)).max())}  # fmt: skip


def main() -> None:
    asked = parser(__doc__, "about a minute: a tiny network, few images").parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    say(f"\n{STEPS} steps, against diffusers' scheduler: difference, NFE ours/theirs, time theirs/ours, ms ours")
    rows = []
    for row in compare(unet(asked.quick), 4, 5 if asked.quick else 3):
        rows.append(row)
        calls = f"{row['nfe']} / {row['their_nfe']}"
        say(f"  {row['sampler']:<12} {row['difference']:>9.1e} {calls:>9} {row['ratio']:>6.2f}x {row['ms']:>8.1f}")
    p16 = lean(4 if asked.quick else 16, 3 if asked.quick else 5)
    each = ", ".join(f"{k} {v:.0f}" for k, v in p16["ms_per_image"].items())
    say(f"\nP16, 5 steps of DDIM on the 35.7M U-Net, ms per image: {each}")
    say(f"  against DDIMPipeline fp32: fp32 {p16['fp32']:.2f}x (floor 1.0), bf16 channels_last {p16['bf16']:.2f}x (floor 1.6); "
        f"bf16 differs by at most {p16['bf16_difference']:.3f} of 1")  # fmt: skip
    ratios = {row["sampler"]: row["ratio"] for row in rows} | {"p16-fp32": p16["fp32"], "p16-bf16": p16["bf16"]}
    finish(asked.json, ratios, samplers=rows, p16=p16, about=facts)


if __name__ == "__main__":
    main()
