"""Cas-DM's cascade and Dual Diffusion: what they compute, who learns from what, and how they are kept."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.upsampling import Upsample2D
from torch.utils.flop_counter import FlopCounterMode

from percepta.formulation import Denoiser, Formulation
from percepta.networks import Cascade, CascadeSpec, adapt, build, build_cascade, cascade_formulation, load_model, parts_of
from percepta.path import BetaTable, Cosine, LinearBeta, Rectified
from percepta.rng import rng_for
from percepta.samplers import sample

SMALL = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "time_embedding_dim": 16}
SIZE, PATH = 8, Cosine(4000)
ABOUT = {  # every choice once
    "cascade": {},
    "dual": {"kind": "dual"},
    "concat": {"concat": True},
    "fixres": {"phi": "fixres"},
    "raw": {"ratio": "raw", "clamp": None},
    "dual-raw": {"kind": "dual", "ratio": "raw", "clamp": 0.3},
}


def shaken(network, scale=0.3):
    """Weights that are nowhere zero, so that everything shows; small enough for r to stay away from 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale / max(p[0].numel() if p.ndim > 1 else 10, 1) ** 0.5)
    return network.eval()


def small(name="cascade", path=PATH, classes=None, shake=True, **options):
    spec = CascadeSpec(**({"preset": "unet-pocket", "overrides": SMALL} | ABOUT[name] | options))
    network = build_cascade(spec, path, size=SIZE, num_classes=classes)
    return shaken(network) if shake else network


def noised(dtype=torch.float32, ks=(0, 40, 2000, 3800)):
    x = torch.randn(len(ks), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, PATH.time_of(list(ks))


def parts(network, x, t, cond=None, path=PATH):
    return parts_of(*Denoiser(network, Formulation(path, "clean")).full(x, t, cond))


# --- what is computed ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        LinearBeta(),
        LinearBeta(500, 0.001, 0.03, scaled=True),
        Cosine(4000),
        Cosine(64, 0.01, 0.99),
        BetaTable((0.1, 0.2, 0.9, 1.0)),
    ],
    ids=lambda path: f"{type(path).__name__}-{path.num_steps}",
)
def test_the_schedule_inside_is_the_paths(path, tmp_path):
    """At every knot and between them, to 1e-12; a cast of the weights and a trip to disk do not round it."""
    network = small(path=path)
    network.save_pretrained(tmp_path)
    ks = torch.cat([torch.arange(path.num_steps, dtype=torch.float64), torch.rand(50, dtype=torch.float64) * (path.num_steps - 1)])
    t = (ks + 1) / path.num_steps
    for model in (network.model, copy.deepcopy(network.model).to(torch.bfloat16), load_model(tmp_path)):
        alpha, sigma = model.alpha_sigma(ks)
        torch.testing.assert_close(alpha, path.alpha(t), rtol=0, atol=1e-12)
        torch.testing.assert_close(sigma, path.sigma(t), rtol=0, atol=1e-12)
    assert cascade_formulation(network.model) == Formulation(path, "clean")


@pytest.mark.parametrize("name", ABOUT)
@pytest.mark.parametrize("classes", [None, 4])
def test_the_output_is_the_equations(name, classes):
    """Each part from the U-Nets called alone, in float64."""
    network = small(name, classes=classes).double()
    model, spec = network.model, ABOUT[name]
    labels = None if classes is None else torch.tensor([0, 3, 4, 1])
    x, t = noised(torch.float64)
    got = parts(network, x, t, labels)
    time = (t * 4000 - 1).float() * 0.25
    first = model.theta(x, time, labels).sample
    alpha, sigma = (k.reshape(-1, 1, 1, 1) for k in (PATH.alpha(t), PATH.sigma(t)))
    star = (x - sigma * first[:, :3]) / alpha
    clamp = spec.get("clamp", 1.0)
    star = star if clamp is None else star.clamp(-clamp, clamp)
    if spec.get("kind") == "dual":
        rest = first[:, 3:]
    else:
        rest = model.phi(torch.cat([star, first], 1) if spec.get("concat") else star, time, labels).sample
    r = rest[:, 3:] if spec.get("ratio") == "raw" else 1 / (1 + torch.exp(-rest[:, 3:]))
    wanted = (r * rest[:, :3] + (1 - r) * star, rest[:, :3], r, first[:, :3], star)
    assert got.ratio.shape == (4, 1, SIZE, SIZE)
    assert float(got.ratio.detach().std()) > 1e-3, "r is per pixel"
    for part, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(part, want, rtol=1e-6, atol=1e-7)  # the times are float32 on the way in


def test_plain_diffusers_calls_it_with_a_whole_timestep():
    model, (x, t) = small().model, noised(ks=(40, 40, 40, 40))
    with torch.no_grad():
        wanted = model(x, (t * 4000 - 1).float()).sample
        assert wanted.shape[1] == model.config.out_channels == 13
        for time in (40, 40.0, torch.tensor(40), torch.full((4,), 40)):
            torch.testing.assert_close(model(x, time).sample, wanted)
        assert torch.equal(model(x, 40, return_dict=False)[0], model(x, 40).sample)


@pytest.mark.parametrize("name", ABOUT)
def test_it_starts_as_the_papers_networks_do(name):
    """Outputs at zero: eps' and x0' are 0 and r is 1/2, or 0 where it is raw. theta begins as the U-Net of the baseline does."""
    network = small(name, shake=False)
    x, t = noised()
    with torch.no_grad():
        got = parts(network, x, t)
    assert not got.eps.any()
    assert not got.x0_prime.any()
    assert bool((got.ratio == (0.0 if "raw" in name else 0.5)).all())
    baseline = build("unet-pocket", size=SIZE, overrides=SMALL).model.state_dict()
    theta = network.model.theta.state_dict()
    same = [key for key in baseline if not key.startswith("conv_out")]
    assert len(same) > 50
    assert all(torch.equal(theta[key], baseline[key]) for key in same)


def test_every_sampler_draws_by_the_mixture():
    network = small(classes=3)
    denoiser = Denoiser(network, Formulation(PATH, "clean"))
    labels = torch.tensor([0, 2])
    for name in ("ddim", "ddpm", "heun", "dpmpp"):
        one, two = (
            sample(denoiser, name, 4, shape=(3, SIZE, SIZE), rng=rng_for(seed, 0, 2, stream="sample"), cond=labels, guidance=2.0)
            for seed in (0, 1)
        )
        assert one.shape == (2, 3, SIZE, SIZE)
        assert bool(one.isfinite().all())
        assert not torch.equal(one, two)


# --- who learns from what ------------------------------------------------------------------------------------------------------------


def gradients(network, loss):
    network.zero_grad()
    loss(parts(network, *noised())).backward()
    return {name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None}


def eps_loss(p):
    return (p.eps - 0.3).square().mean()


def phi_loss(p):
    return (p.x0_prime - 0.1).square().mean() + p.ratio.pow(3).mean() + (p.mixed - 0.2).abs().mean() + p.star.square().mean()


@pytest.mark.parametrize("name", ["cascade", "concat", "fixres", "raw"])
def test_nothing_that_phi_is_asked_reaches_theta(name):
    """The paper's claim, to the bit: theta's gradient is that of eps' alone, whatever is asked of x0', r, the mixture or x0*."""
    network = small(name)
    alone, both = gradients(network, eps_loss), gradients(network, lambda p: eps_loss(p) + phi_loss(p))
    theta = [key for key in both if key.startswith("theta.")]
    assert len(theta) > 50
    assert all(both[key].any() for key in theta)
    assert all(torch.equal(alone[key], both[key]) for key in theta)
    phi = gradients(network, phi_loss)
    assert all(not phi[key].any() for key in theta)
    assert all(both[key].any() for key in both if key.startswith("phi."))


def test_duals_trunk_does_receive_it():
    network = small("dual")
    alone, both = gradients(network, eps_loss), gradients(network, lambda p: eps_loss(p) + phi_loss(p))
    assert not torch.equal(alone["theta.conv_in.weight"], both["theta.conv_in.weight"])
    star = gradients(network, lambda p: (p.star - 1).square().mean() + 0 * p.eps.sum())
    assert not star["theta.conv_in.weight"].any(), "x0* is a constant in Dual too"


@pytest.mark.parametrize("name", ["cascade", "dual"])
def test_r_learns_in_bf16_from_errors_of_a_millionth(name):
    """L_mu as printed is about 1e-6 of an error of x0: its gradient of r's row survives autocast, and points where float32's does."""
    network = small(name)

    def loss(p):
        return 1e-6 * (p.ratio * p.x0_prime.detach() + (1 - p.ratio) * p.star - 0.5).square().mean()

    exact = gradients(network, loss)
    with torch.autocast("cpu", torch.bfloat16):
        x, t = noised()
        low = parts(network, x, t)
        rounded = gradients(network, loss)
    assert {part.dtype for part in low} == {torch.float32}
    logit = low.ratio.detach().logit()
    assert float((logit - logit.bfloat16()).abs().max()) > 1e-3 * float(logit.abs().max()), "r is not rounded to bf16"
    assert not torch.equal(low.x0_prime, low.x0_prime.bfloat16().float()), "nor is x0'"
    key = "theta.conv_out.weight" if name == "dual" else "phi.conv_out.weight"
    a, b = exact[key][-1].flatten(), rounded[key][-1].flatten()
    assert 0 < float(a.norm()) < 1e-4
    assert float(torch.nn.functional.cosine_similarity(a, b, 0)) > 0.99


def test_an_unbounded_x0_is_refused_in_fp16_and_nowhere_else():
    """x0* of a cosine schedule is infinite in fp16, and phi would answer NaN; a clamp, a schedule that ends early, bf16 and Dual hold."""
    x, t = noised(ks=(0, 3998, 3999))

    def finite(dtype, path=PATH, **options):
        network = small(path=path, **options)
        with torch.no_grad(), torch.autocast("cpu", dtype):
            return bool(parts(network, x, t, path=path).mixed.isfinite().all())

    network = small("raw")
    network.model.reach = 0.0  # not looked at
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        got = parts(network, x, t)
    assert float(got.star.abs().max()) > 65504 and not got.mixed.isfinite().all(), "what is refused"
    for options in ({"clamp": None}, {"clamp": None, "concat": True}, {"clamp": 1e5}):
        with pytest.raises(ValueError, match=r"x0\* reaches .* more than fp16 can hold .*--clamp-x0 1\.0"):
            finite(torch.float16, **options)
    with pytest.raises(ValueError, match="more than fp16 can hold"), torch.no_grad():
        small("raw").model.half()(x.half(), 40)
    assert finite(torch.bfloat16, clamp=None)
    assert finite(torch.float16, clamp=1.0)
    assert finite(torch.float16, clamp=None, path=LinearBeta())
    assert finite(torch.float16, name="dual", clamp=None)


def test_gradient_checkpointing_changes_nothing():
    network = small().train()
    before = gradients(network, lambda p: eps_loss(p) + phi_loss(p))
    network.enable_gradient_checkpointing()
    assert network.model.theta.is_gradient_checkpointing
    assert network.model.phi.is_gradient_checkpointing
    after = gradients(network, lambda p: eps_loss(p) + phi_loss(p))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], rtol=1e-5, atol=1e-7) for key in before)


# --- the second network --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["unet-cifar", "adm-64"])
def test_fixres_has_no_resampling_fewer_parameters_and_more_arithmetic(preset):
    """What the paper says of its Fix-Res CNN. Nothing is allocated."""
    with torch.device("meta"):
        same, fixed = (build_cascade(CascadeSpec(preset=preset, phi=phi), PATH, size=32).model.phi for phi in ("same", "fixres"))
        assert not [m for m in fixed.modules() if isinstance(m, Downsample2D | Upsample2D)]
        attentions = [sum(isinstance(m, Attention) for m in net.modules()) for net in (same, fixed)]
        assert attentions[0] > attentions[1] == 1
        flops = []
        for net in (same, fixed):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                assert net(torch.empty(1, 3, 32, 32), torch.zeros(1)).sample.shape == (1, 4, 32, 32)
            flops.append(counter.get_total_flops())
    counts = [sum(p.numel() for p in net.parameters()) for net in (same, fixed)]
    assert counts[1] < counts[0] / 2
    assert 1 < flops[1] / flops[0] < 5


# --- keeping it ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ABOUT)
def test_a_folder_holds_all_of_it(name, tmp_path):
    network = small(name, classes=4, num_heads=4, overrides=SMALL | {"add_attention": True})
    network.save_pretrained(tmp_path)
    again = adapt(load_model(tmp_path))
    assert type(again.model) is Cascade
    stored = {k: v for k, v in network.model.config.items() if k != "_use_default_values"}
    assert {k: again.model.config[k] for k in stored} == stored
    assert again.reads == network.reads
    assert {m.heads for m in again.modules() if isinstance(m, Attention)} == {4}
    x, t = noised()
    with torch.no_grad():
        for a, b in zip(
            parts(again, x, t, torch.tensor([0, 1, 2, 4])), parts(network, x, t, torch.tensor([0, 1, 2, 4])), strict=True
        ):
            assert torch.equal(a, b)
    half = Cascade.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    with torch.no_grad():
        assert half(x.bfloat16(), 40, torch.tensor([0, 1, 2, 4])).sample.dtype == torch.float32


# --- what cannot be built ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "path", "message"),
    [
        (
            {"preset": "dit-pocket"},
            PATH,
            "made of U-Nets, unet-pocket, unet-cifar, adm-64, iddpm-32; 'dit-pocket' is a DiTTransformer2DModel",
        ),
        ({"preset": "ddpmpp-32"}, PATH, "'ddpmpp-32' is a DDPMPP"),
        ({"preset": "unet-poket"}, PATH, "did you mean 'unet-pocket'"),
        ({"kind": "triple"}, PATH, "kind is cascade or dual"),
        ({"phi": "other"}, PATH, "phi same or fixres"),
        ({"kind": "dual", "concat": True}, PATH, "Dual Diffusion has one"),
        ({"ratio": "softmax"}, PATH, "ratio is sigmoid or raw"),
        ({"clamp": 0.0}, PATH, "clamp bounds x0"),
        ({}, Rectified(), "timesteps of a discrete path"),
        ({"overrides": {"out_channels": 4}}, PATH, "follows from the data"),
    ],
)
def test_what_cannot_be_built_is_an_error_with_advice(spec, path, message):
    with pytest.raises(ValueError, match=message):
        build_cascade(CascadeSpec(**spec), path, size=SIZE)


def test_wrong_use_is_an_error_with_advice():
    network = small()
    x, t = noised()
    with pytest.raises(ValueError, match="cannot work at size 10"):
        build_cascade(CascadeSpec(), PATH, size=10)
    with pytest.raises(ValueError, match=r"timesteps of this cascade lie in 0 .. 3999, got 4000"):
        network.model(x, 4000)
    with pytest.raises(ValueError, match="its time cannot be scaled outside"):
        adapt(small().model, time_factor=0.25)
    with pytest.raises(ValueError, match="10 channels beside its estimate"):
        parts_of(x, {})
    config = dict(network.model.config)
    theta = dict(config["theta_config"])
    with pytest.raises(ValueError, match="leave sample_size, in_channels"):
        Cascade({**theta, "in_channels": 3}, config["schedule"])
    with pytest.raises(ValueError, match="puts out 4 x 3"):
        Cascade(theta, config["schedule"], out_channels=6)
    with pytest.raises(ValueError, match="has no phi"):
        Cascade(theta, config["schedule"], concat=True)
    with pytest.raises(ValueError, match="got 'Rectified'"):
        Cascade(theta, {"name": "Rectified"})
