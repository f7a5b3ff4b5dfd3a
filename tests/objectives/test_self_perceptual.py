"""Self-Perceptual: the formula written out, whom the gradient reaches, and a second time that belongs to the sample alone."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel
from torch import Tensor

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import Denoiser, Formulation, LogNormalTimes, UniformTimes
from percepta.networks import adapt
from percepta.networks.hidden import hidden_layer
from percepta.objectives import Denoising, SelfPerceptual, Term, frozen_copy
from percepta.objectives.self_perceptual import other_times
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.training.method import Method
from percepta.training.product import Sampled

torch.set_num_threads(1)
TOKENS = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "num_layers": 2, "sample_size": 8}
MODELS = {
    "unet": lambda: UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, add_attention=False,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=4,
    ),
    "dit": lambda: DiTTransformer2DModel(**TOKENS, num_embeds_ada_norm=3),
    "mmdit": lambda: SD3Transformer2DModel(
        **TOKENS, out_channels=4, joint_attention_dim=4, pooled_projection_dim=4, caption_projection_dim=8, pos_embed_max_size=8
    ),
}  # fmt: skip
DEPTHS = {"unet": None, "dit": 2, "mmdit": 1}
FORMULATIONS = {
    "eps": Formulation(LinearBeta(), "noise"),
    "v": Formulation(Cosine(), "velocity"),
    "x0": Formulation(Cosine(), "clean"),
    "flow": Formulation(Rectified(), "flow"),
    "edm": Formulation(VarianceExploding(), "edm", LogNormalTimes()),
}


def denoiser(name: str = "unet", formulation: str = "eps", seed: int = 0) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = Denoiser(adapt(MODELS[name](), num_classes=3), FORMULATIONS[formulation]).double()
        for parameter in made.parameters():  # fresh transformers are the identity
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(torch.randn(rows, 4, 8, 8, generator=generator, dtype=torch.float64), torch.arange(rows) % 4)


def estimate(model: Denoiser, rows: int = 4) -> Estimate:
    return Denoise(model)(batch(rows), rng_for(0, 0, rows))


def near(est: Estimate, by: float = 0.3) -> Estimate:
    """The same with an x0_hat of its own, which is a leaf."""
    noise = torch.randn(est.x0.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Estimate((est.x0 + by * noise).requires_grad_(), est.x0, True, est.noised, est.path, est.cond)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_formula_written_out(name, formulation):
    """With a hook that only looks, in passes that go to the end."""
    frozen = frozen_copy(denoiser(name, formulation))
    objective = SelfPerceptual(frozen, DEPTHS[name])
    est = near(estimate(denoiser(name, formulation, seed=1)))
    found = objective(est)
    path, noised, t2 = frozen.path, est.noised, other_times(est.noised.eps, UniformTimes(), frozen.path)
    looked: list[Tensor] = []
    hook = hidden_layer(frozen.network, DEPTHS[name]).register_forward_hook(
        lambda module, given, out: looked.append(out[1] if isinstance(out, tuple) else out)
    )
    for x0 in (est.x0, est.x0_hat):
        for row in range(len(est)):
            alpha, sigma, alpha2, sigma2 = (float(f(t[row])) for t in (noised.t, t2) for f in (path.alpha, path.sigma))
            eps = (noised.x_t[row] - alpha * x0[row]) / sigma
            frozen((alpha2 * x0[row] + sigma2 * eps)[None], t2[row : row + 1], est.cond[row : row + 1])
    hook.remove()
    expected = [(looked[row] - looked[len(est) + row]).square().mean() for row in range(len(est))]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-12)
    assert (found > 1e-6).all()


@pytest.mark.parametrize("name", MODELS)
def test_zero_at_the_truth(name):
    objective = SelfPerceptual(frozen_copy(denoiser(name)), DEPTHS[name])
    est = near(estimate(denoiser(name)))
    true = Estimate(est.x0, est.x0, True, est.noised, est.path, est.cond)
    assert (objective(true) / objective(est)).max().item() < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_goes_to_the_estimate_alone(name):
    frozen, model = frozen_copy(denoiser(name)), denoiser(name, seed=1)
    objective = SelfPerceptual(frozen, DEPTHS[name])
    est = near(estimate(model))
    (grad,) = torch.autograd.grad(objective(est).sum(), est.x0_hat)
    step = 1e-5 * grad / grad.norm()
    ends = [
        objective(Estimate(est.x0_hat.detach() + s * step, est.x0, True, est.noised, est.path, est.cond)).sum() for s in (1, -1)
    ]
    assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(float(grad.norm()), rel=1e-4)
    objective(estimate(model)).mean().backward()
    assert any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in frozen.parameters())


def test_one_pass_with_a_graph_and_one_without_and_nothing_behind_the_layer():
    frozen = frozen_copy(denoiser())
    seen: list[tuple[str, int, bool]] = []
    for name, module in (("mid", frozen.network.model.mid_block), ("up", frozen.network.model.up_blocks[0])):
        module.register_forward_pre_hook(
            lambda module, given, name=name: seen.append((name, len(given[0]), torch.is_grad_enabled()))
        )
    est = near(estimate(denoiser(seed=1)))
    gated = Term("self-perceptual", SelfPerceptual(frozen), keep=lambda est: est.t <= est.t.sort().values[1])
    loss = gated(est)
    assert sorted(seen) == [("mid", 2, False), ("mid", 2, True)]
    (grad,) = torch.autograd.grad(loss, est.x0_hat)
    assert [bool(row.any()) for row in grad] == (est.t <= est.t.sort().values[1]).tolist()


def test_parts_of_a_batch_are_the_whole():
    """The second time comes with the sample: not with its place, its neighbours, or the process that has it."""
    objective = SelfPerceptual(frozen_copy(denoiser("dit")), 1)
    est = near(estimate(denoiser("dit", seed=1), 6))
    whole = objective(est)
    parts = torch.cat([objective(est.select(torch.arange(6) // 2 == k)) for k in range(3)])
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=0)
    assert torch.equal(objective(est), whole)
    late = Denoise(denoiser("dit", seed=1))(batch(6).select(slice(4, 6)), rng_for(0, 4, 2))
    torch.testing.assert_close(
        other_times(late.noised.eps, UniformTimes(), Cosine()), other_times(est.noised.eps, UniformTimes(), Cosine())[4:]
    )


def test_second_times_are_uniform_and_tell_nothing_of_the_first():
    rng = rng_for(7, 0, 2000)
    path = LinearBeta()
    noised = Formulation(path, "noise").noised(torch.zeros(2000, 1, 8, 8), rng)
    t = other_times(noised.eps, UniformTimes(), path)
    assert (
        t.dtype == torch.float64 and torch.equal((t * 1000).round() / 1000, t) and float(t.min()) >= 0.001 and float(t.max()) <= 1
    )
    counts = torch.histc(t.float(), 10, 0, 1)
    assert float(((counts - 200) ** 2 / 200).sum()) < 27.9  # chi-square of 9 degrees: once in a thousand
    for other in (
        noised.t,
        noised.eps.double().mean((1, 2, 3)),
        noised.eps.double().std((1, 2, 3)),
        noised.eps[:, 0, 0, 0].double(),
    ):
        assert abs(float(torch.corrcoef(torch.stack([t, other]))[0, 1])) < 0.08
    flow = other_times(noised.eps, UniformTimes(), Rectified())
    assert len(flow.unique()) == 2000
    levels = other_times(noised.eps, LogNormalTimes(), VarianceExploding())
    assert float(levels.log().mean()) == pytest.approx(-1.2, abs=0.1)
    assert len(other_times(noised.eps[:0], UniformTimes(), path)) == 0


@pytest.mark.parametrize("joined", [True, False])
def test_it_joins_the_squared_error_or_replaces_it(joined):
    """One step of a method: the model learns, and f* is to the bit what it was."""
    model = denoiser("unet", "v", seed=1)
    frozen = frozen_copy(denoiser("unet", "v"))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    terms = [Term("self-perceptual", SelfPerceptual(frozen), 0.1), *([Term("denoising", Denoising())] if joined else [])]
    method = Method(model, Denoise(model), terms, Sampled(model, (4, 8, 8), "ddim"))
    assert list(method.players) == ["model"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(6):
        (turn,) = method.step(batch(), rng_for(0, 0, 4))
        optimizer.zero_grad()
        turn.loss.backward()
        optimizer.step()
        losses.append(turn.loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    method.to(torch.device("meta"))
    assert all(p.device.type == "meta" for p in frozen.parameters()), "f* stayed behind when the method moved"


def test_a_frozen_copy():
    model = denoiser("dit")
    model.network.enable_gradient_checkpointing()
    frozen = frozen_copy(model)
    assert model.training and all(p.requires_grad for p in model.parameters()) and model.network.model.is_gradient_checkpointing
    assert (
        not frozen.training
        and not any(p.requires_grad for p in frozen.parameters())
        and not frozen.network.model.is_gradient_checkpointing
    )
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint(p.data_ptr() for p in frozen.parameters())


def test_mistakes_are_explained():
    model = denoiser("dit")
    with pytest.raises(ValueError, match="frozen copy"):
        SelfPerceptual(model, 1)
    with pytest.raises(ValueError, match="1 to 2: give the depth"):
        SelfPerceptual(frozen_copy(model))
    with pytest.raises(ValueError, match="adapt the model first"):
        SelfPerceptual(Denoiser(torch.nn.Identity(), FORMULATIONS["eps"]).eval())
    frozen = frozen_copy(model)
    frozen.network.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="compute its blocks again"):
        SelfPerceptual(frozen, 1)
    objective = SelfPerceptual(frozen_copy(model), 1)
    with pytest.raises(ValueError, match="on the same path"):
        objective(estimate(denoiser("dit", "v")))
    with pytest.raises(ValueError, match="no noise level"):
        objective(Estimate(batch().x0, batch().x0))
