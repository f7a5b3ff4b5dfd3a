"""LatentPerceptual: the gate comes before decoding, the mean is over all samples drawn, and wrong latents are refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import FLOW, Denoiser
from percepta.networks import Autoencoder, build, build_autoencoder
from percepta.objectives import LatentPerceptual, Term
from percepta.rng import rng_for
from percepta.training.knobs import UpTo

torch.set_num_threads(1)


def autoencoder() -> Autoencoder:
    return build_autoencoder("ae-pocket", size=16).eval()


def latents(count: int = 4, side: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed))


def test_two_lines_in_a_loop_of_ones_own():
    lpl = LatentPerceptual(autoencoder().model)
    z0, z0_hat = latents(), latents(seed=1).requires_grad_()
    level = torch.tensor([0.1, 5.0, 2.0, 3.0])
    loss = lpl(z0_hat, z0, level)
    alone = lpl(Estimate(z0_hat[[0, 2, 3]], z0[[0, 2, 3]]))
    assert torch.allclose(loss, alone.sum() / 4)  # of all that were drawn
    loss.backward()
    assert z0_hat.grad is not None
    moved = z0_hat.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True, False, True, True]
    assert float(lpl(z0, z0, level)) == 0
    nothing = lpl(z0_hat, z0, torch.full((4,), 9.0))
    assert float(nothing.detach()) == 0 and nothing.requires_grad


def test_samples_beyond_the_gate_are_never_decoded():
    vae = autoencoder()
    seen: list[int] = []
    vae.model.decoder.conv_in.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    lpl = LatentPerceptual(vae)
    level = torch.tensor([0.1, 5.0, 2.0, 9.0])
    lpl(latents(), latents(seed=1), level)
    assert seen == [2, 2]  # once for each side
    seen.clear()
    lpl(latents(), latents(seed=1), torch.full((4,), 3.1))
    assert seen == []


def test_nothing_beyond_the_gate_matters():
    """Not even numbers that are not finite, as an estimate from pure noise may have."""
    lpl = LatentPerceptual(autoencoder())
    z0_hat = latents(seed=1).requires_grad_()
    broken = z0_hat / torch.tensor([1.0, 0.0, 1.0, 1.0]).view(-1, 1, 1, 1)
    nothing = lpl(broken, latents(), torch.full((4,), 9.0))
    assert float(nothing.detach()) == 0
    assert bool(lpl(broken, latents(), torch.tensor([1.0, 9.0, 1.0, 1.0])).isfinite())


def test_an_autoencoder_that_moves_takes_its_scale_along():
    vae = autoencoder().to("meta")
    assert vae.raw(torch.empty(2, 4, 4, 4, device="meta")).device.type == "meta"


def estimate(network_seed: int = 0) -> tuple[Denoiser, Estimate]:
    denoiser = Denoiser(build("unet-pocket", channels=4, size=4, seed=network_seed), FLOW)
    with torch.no_grad():
        for p in denoiser.parameters():  # a fresh network puts out nothing
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return denoiser, Denoise(denoiser)(Batch(latents(16)), rng_for(0, 0, 16))


def test_the_gradient_reaches_the_denoiser_and_not_the_autoencoder():
    denoiser, est = estimate()
    lpl = LatentPerceptual(autoencoder())
    Term("lpl", lpl, keep=UpTo(3.0))(est).backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in denoiser.parameters())
    assert all(p.grad is None for p in lpl.space.parameters())


def test_a_term_with_the_gate_is_the_loop_of_ones_own():
    _, est = estimate()
    lpl = LatentPerceptual(autoencoder())
    assert 0 < int((est.level <= 3).sum()) < 16
    assert torch.allclose(Term("lpl", lpl, keep=UpTo(3.0))(est), lpl(est.x0_hat, est.x0, est.level))


def test_windows_are_the_samples_own():
    """Whatever the neighbours: parts of a batch decode the same windows as the whole."""
    _, est = estimate()
    lpl = LatentPerceptual(autoencoder(), crop=2)
    whole = lpl(est)
    parts = torch.cat([lpl(est.select(torch.arange(16) == k)) for k in range(16)])
    assert torch.allclose(whole, parts, rtol=1e-4)
    assert not torch.allclose(whole, LatentPerceptual(autoencoder())(est), rtol=1e-3)
    sizes: list[int] = []
    lpl.space.vae.model.decoder.conv_in.register_forward_hook(lambda m, inputs, out: sizes.append(inputs[0].shape[-1]))
    lpl(est)
    assert sizes == [2, 2]


def test_bf16_is_within_five_per_cent_and_its_gradient_points_the_same_way():
    grads, values = [], []
    for precision in ("fp32", "bf16"):
        z0_hat = latents(seed=1, side=8).requires_grad_()
        loss = LatentPerceptual(autoencoder(), precision=precision, max_level=None)(z0_hat, latents(side=8))
        loss.backward()
        assert z0_hat.grad is not None and loss.dtype == torch.float32
        grads.append(z0_hat.grad.flatten())
        values.append(float(loss.detach()))
    assert values[1] == pytest.approx(values[0], rel=0.05)
    assert float(torch.cosine_similarity(*grads, dim=0)) > 0.99


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda lpl: lpl(latents() * 8, latents() * 8, torch.ones(4)), "unit deviation, got 7"),
        (lambda lpl: lpl(latents() / 8, latents() / 8, torch.ones(4)), "scaling_factor"),
        (lambda lpl: lpl(latents()[:, :3], latents()[:, :3], torch.ones(4)), "4 channels, got 3"),
        (lambda lpl: lpl(latents(), latents(3), torch.ones(4)), "own target"),
        (lambda lpl: lpl(latents(), latents()), "one noise level"),
        (lambda lpl: lpl(latents(), latents(), torch.ones(3)), "one noise level"),
        (lambda lpl: lpl(latents()), "with their targets"),
    ],
)
def test_wrong_latents_are_refused(call: Callable[[LatentPerceptual], Tensor], said: str):
    with pytest.raises(ValueError, match=said):
        call(LatentPerceptual(autoencoder()))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_level": 0.0}, "sigma/alpha above 0"),
        ({"crop": 0}, "1 wide or more"),
        ({"half": True}, "overflow in float16"),
        ({"norm": "batch"}, "norm is"),
        ({"weights": "double"}, "layer weights"),
        ({"outliers": "both"}, "outliers are"),
    ],
)
def test_wrong_options_are_refused(options: dict, said: str):
    with pytest.raises(ValueError, match=said):
        vae = autoencoder()
        LatentPerceptual(vae.half() if options.pop("half", False) else vae, **options)
