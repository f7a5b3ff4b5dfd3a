"""The cut: explicit states, noise from outside. A chain can be replayed step by step, with its gradient, for every sampler alike."""

import pytest
import torch

from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.samplers import SOLVERS, Bound, Churn, State, ddim, ddpm, euler, grid, heun, integrate, rk4, start, step_noise

RNG = rng_for(5, 0, 3, stream="sample")
X = RNG.normal("x_T", (2, 4, 4), torch.float64)
STEPS = {name: make() for name, make in SOLVERS.items()} | {
    "ddim-eta": ddim(0.7), "ddpm-large": ddpm("fixed_large"), "euler-churn": euler(Churn(0.1)), "heun-churn": heun(Churn(0.1)),
}  # fmt: skip


def chain(step, denoiser, times, x=X):
    """The final sample, and what a rollout keeps: every State."""
    states = []
    end = integrate(
        step, denoiser, start(denoiser.path, times[0].item(), x), times, rng=RNG, callback=lambda i, state, t: states.append(state)
    )
    return end, states


def interior(path):
    """A short grid that churn can raise without leaving the path."""
    return grid(path, 6)[1:]


@pytest.mark.parametrize("name", STEPS)
def test_replayed_steps_are_bit_equal(name, gaussian):
    step, denoiser, times = STEPS[name], gaussian(LinearBeta()), interior(LinearBeta())
    with torch.no_grad():
        end, states = chain(step, denoiser, times)
        points = times.tolist()
        for i in reversed(range(len(points) - 1)):
            after = step(Bound(denoiser), states[i], points[i], points[i + 1], step_noise(step, RNG, i, states[i].x))
            expected = states[i + 1] if i + 2 < len(points) else State(end)
            assert torch.equal(after.x, expected.x)
            assert all(torch.equal(a, b) for a, b in zip(after.memory, expected.memory, strict=False))


@pytest.mark.parametrize("name", STEPS)
def test_two_passes_give_the_gradient_of_the_whole_chain(name, gaussian):
    """Sample without a graph, replay backwards one step at a time, hand the gradient of the State on: issue 3's rollout."""
    step, denoiser, times = STEPS[name], gaussian(LinearBeta()), interior(LinearBeta())
    end, _ = chain(step, denoiser, times)
    (whole,) = torch.autograd.grad((end**2).sum(), denoiser.variance)

    with torch.no_grad():
        end, states = chain(step, denoiser, times)
    points, total = times.tolist(), torch.zeros_like(whole)
    after_gradient: tuple[torch.Tensor, ...] = (2 * end,)
    for i in reversed(range(len(points) - 1)):
        tensors = [v.detach().requires_grad_(v.ndim > 0) for v in (states[i].x, *states[i].memory)]
        after = step(
            Bound(denoiser), State(tensors[0], tuple(tensors[1:])), points[i], points[i + 1], step_noise(step, RNG, i, states[i].x)
        )
        outputs = [v for v in (after.x, *after.memory) if v.requires_grad][: len(after_gradient)]
        leaves = [v for v in tensors if v.requires_grad]
        grads = torch.autograd.grad(outputs, [denoiser.variance, *leaves], after_gradient, allow_unused=True)
        total += grads[0]
        after_gradient = tuple(torch.zeros_like(v) if g is None else g for g, v in zip(grads[1:], leaves, strict=True))
    assert torch.allclose(total, whole, rtol=1e-9)
    assert whole.abs() > 1e-3


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("path", [LinearBeta(), Rectified(), VarianceExploding()])
def test_the_gradient_through_three_steps_is_that_of_finite_differences(name, path, gaussian):
    if "churn" in name and isinstance(path, Rectified):
        pytest.skip("churn raises the level above that of t = 1")
    step, denoiser = STEPS[name], gaussian(path)
    times = grid(path, 5)[1:5] if name != "adaptive" else torch.tensor([0.5, 0.25], dtype=torch.float64)
    if name == "adaptive":
        step = SOLVERS[
            "rk4"
        ]()  # an adaptive step size is not differentiable where a step is accepted or not: its gradient is tested above

    def end(value):
        with torch.no_grad():
            denoiser.variance.fill_(value)
        return (chain(step, denoiser, times, X[:1].repeat(3, 1, 1, 1))[0] ** 2).mean()

    (analytic,) = torch.autograd.grad(end(0.25), denoiser.variance)
    h = 1e-5
    numeric = (end(0.25 + h) - end(0.25 - h)).item() / (2 * h)
    assert analytic.item() == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "adaptive"])
@pytest.mark.parametrize("path", [Cosine(), Rectified(), VarianceExploding()])
@pytest.mark.parametrize("to_clean", [True, False])
def test_evaluations_are_counted_right(name, path, to_clean, gaussian):
    step, denoiser = SOLVERS[name](), gaussian(path)
    times = grid(path, 9) if to_clean else grid(path, 9)[:-1]
    chain(step, denoiser, times)
    assert denoiser.calls == step.evaluations(times)


def test_published_evaluation_counts(gaussian):
    times = grid(VarianceExploding(), 18)
    assert heun().evaluations(times) == 35
    assert euler().evaluations(times) == 18
    assert rk4().evaluations(times) == 71
    assert SOLVERS["adaptive"]().evaluations(times) is None


def test_churn_raises_level_and_variance_together(gaussian):
    """EDM's algorithm 2, lines 4 to 6: after churning, the noise in x has the deviation of the raised level."""
    path = VarianceExploding()
    x, raised = Churn(0.2).applied(path, torch.zeros(1), 2.0, torch.ones(1))
    assert raised == pytest.approx(2.4)
    assert x.item() ** 2 + 2.0**2 == pytest.approx(2.4**2)
    assert Churn(0.2, low=3.0).applied(path, torch.zeros(1), 2.0, torch.ones(1)) == (torch.zeros(1), 2.0)
    assert Churn.of(40, 256).gamma == pytest.approx(40 / 256)
    assert Churn.of(400, 256).gamma == pytest.approx(2**0.5 - 1)
    on_vp = LinearBeta()
    x, raised = Churn(0.2).applied(on_vp, torch.zeros(1), 0.5, torch.ones(1))
    t = torch.tensor([0.5, raised], dtype=torch.float64)
    kept = on_vp.alpha(t)[1] / on_vp.alpha(t)[0]
    assert x.item() ** 2 + (kept * on_vp.sigma(t)[0]).item() ** 2 == pytest.approx((on_vp.sigma(t)[1] ** 2).item())


def test_churn_beyond_the_path_is_refused(gaussian):
    for path in (LinearBeta(), Rectified()):
        with pytest.raises(ValueError, match="churn"):
            integrate(euler(Churn(0.5)), gaussian(path), X, torch.tensor([path.t_max, 0.5], dtype=torch.float64), rng=RNG)


def test_a_start_has_the_variance_of_its_path():
    assert torch.equal(start(LinearBeta(), 0.801, X), X)
    assert torch.equal(start(Rectified(), 1.0, X), X)
    assert torch.equal(start(VarianceExploding(), 80.0, X), 80 * X)


def test_adaptive_names_the_package_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchdiffeq", None)
    with pytest.raises(ValueError, match=r"pip install 'percepta\[ode\]'"):
        SOLVERS["adaptive"]()


def test_the_condition_reaches_every_evaluation(gaussian):
    seen = []

    class Watching(torch.nn.Module):
        path = LinearBeta()

        def forward(self, x_t, t, cond=None):
            seen.append((cond, t))
            return x_t / 2

    cond = torch.arange(3)
    integrate(heun(), Watching(), X, grid(LinearBeta(), 4), cond=cond)
    assert len(seen) == 7
    assert all(c is cond and t.shape == (3,) and t.dtype == torch.float64 and t.device.type == "cpu" for c, t in seen)
