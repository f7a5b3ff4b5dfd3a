"""Rollout: one gradient by three ways, on a real U-Net, to the bit where the rows go through the chain together."""

import gc
import math

import pytest
import torch
from torch import Tensor, nn

from percepta import rollout
from percepta.estimate import Batch
from percepta.formulation import Denoiser, Formulation
from percepta.networks import build
from percepta.objectives import Mmd, Term
from percepta.path import LinearBeta, Rectified
from percepta.rng import rng_for
from percepta.rollout import Rollout
from percepta.samplers import grid, solver
from percepta.spaces import Pixels, Space
from percepta.training.method import Method, Turn
from percepta.training.product import Sampled

ROWS = 4
CHAINS = {
    "ddim": ("ddim", 0.0, None),
    "ddim, eta 1, clamped": ("ddim", 1.0, (-1.0, 1.0)),
    "ddpm": ("ddpm", 0.0, None),
    "dpmpp": ("dpmpp", 0.0, None),
    "heun": ("heun", 0.0, None),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def denoiser(dropout: float = 0.1, flow: bool = False, classes: int | None = None) -> Denoiser:
    """A real U-Net in training mode, its dropout on; nothing starts at zero, so that every weight has a gradient."""
    network = build("unet-pocket", channels=3, size=16, num_classes=classes, seed=0)
    draw = torch.Generator().manual_seed(1)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02 if p.ndim == 1 else 1 / math.sqrt(p[0].numel()), generator=draw)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    formulation = Formulation(Rectified(), "flow") if flow else Formulation(LinearBeta(1000), "noise")
    return Denoiser(network, formulation).train()


def images(rows: int = ROWS) -> Tensor:
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def turn_of(made: Rollout, objective: Mmd | None = None, batch: Batch | None = None) -> Turn:
    method = Method(made.denoiser, made, [Term("mmd", objective or Mmd(Pixels()))], Sampled(made.denoiser, (3, 16, 16), "ddim"))
    batch = batch or Batch(images())
    (turn,) = method.step(batch, rng_for(3, 0, len(batch)))
    return turn


def gradient(made: Rollout, objective: Mmd | None = None, batch: Batch | None = None, scale: float = 1.0) -> tuple[float, Tensor]:
    made.denoiser.zero_grad()
    turn = turn_of(made, objective, batch)
    if turn.backward is None:
        (turn.loss * scale).backward()
    else:
        turn.backward(scale)
    return float(turn.loss.detach()), torch.cat([p.grad.flatten() for p in made.denoiser.parameters() if p.grad is not None])


def chain(model: Denoiser, name: str, steps: int = 3, **more) -> Rollout:
    solver_name, eta, clip = CHAINS[name]
    return Rollout(model, solver(solver_name, eta=eta, clip=clip), grid(model.path, steps), **more)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_three_ways_to_one_gradient(name, dropout):
    model = denoiser(dropout)
    loss, truth = gradient(chain(model, name, backprop="full"))
    assert (truth != 0).float().mean() > 0.99
    for way in ("checkpoint", "replay"):
        found_loss, found = gradient(chain(model, name, backprop=way))
        assert found_loss == loss, way
        if name == "heun":  # two evaluations in a step: their sum is rounded in another order
            assert (found - truth).norm() < 1e-6 * truth.norm(), way
        else:
            assert torch.equal(found, truth), way


def test_a_flow_goes_the_same_way():
    model = denoiser(flow=True)
    ways = [gradient(Rollout(model, solver("euler"), grid(model.path, 3), backprop=way)) for way in ("full", "replay")]
    assert ways[0][0] == ways[1][0]
    assert torch.equal(ways[0][1], ways[1][1])


@pytest.mark.parametrize("way", ["full", "checkpoint", "replay"])
def test_micro_batches_change_nothing_but_the_order_of_sums(way):
    model = denoiser(dropout=0.0)
    loss, truth = gradient(chain(model, "ddim, eta 1, clamped", backprop="full"))
    for micro in (1, 3):
        found_loss, found = gradient(chain(model, "ddim, eta 1, clamped", backprop=way, micro=micro), Mmd(Pixels(), chunk=2))
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert (found - truth).norm() < 1e-5 * truth.norm()


def test_micro_batches_in_float64():
    model = denoiser(dropout=0.0).double()
    batch = Batch(images().double())
    _, truth = gradient(chain(model, "ddim", backprop="full"), batch=batch)
    _, found = gradient(chain(model, "ddim", backprop="replay", micro=1), batch=batch)
    assert (found - truth).norm() < 1e-12 * truth.norm()


def test_the_scale_of_the_loss_reaches_the_gradient():
    model = denoiser()
    _, one = gradient(chain(model, "ddim", backprop="replay"))
    _, half = gradient(chain(model, "ddim", backprop="replay"), scale=0.5)
    assert torch.allclose(half, one / 2, rtol=1e-5, atol=0)


def test_bf16_takes_the_same_way():
    """A weight that was cast to bf16 without a graph must not be used with one. Not to the bit: the whole graph casts each weight once and
    adds up its gradients in bf16, replay casts it in every step and adds up in float32."""
    model = denoiser()
    found = []
    for way in ("full", "replay"):
        made = chain(model, "ddim", backprop=way)
        made.denoiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            turn = turn_of(made)
        if turn.backward is None:
            turn.loss.backward()
        else:
            turn.backward(1.0)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert found[0].norm() > 0
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()


def test_memory_is_that_of_one_step(monkeypatch):
    """What autograd keeps at any time, counted: flat in the number of steps by replay, and growing with it in the whole graph."""

    def most(way: str, steps: int) -> int:
        made, alive, peak = chain(denoiser(), "ddim", steps, backprop=way, micro=2), 0, 0

        class Held:
            def __init__(self, x: Tensor) -> None:
                nonlocal alive, peak
                self.x = x
                alive += x.nbytes
                peak = max(peak, alive)

            def __del__(self) -> None:
                nonlocal alive
                alive -= self.x.nbytes

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.x):
            gradient(made)
        return peak

    assert most("replay", 8) < 1.05 * most("replay", 2)
    assert most("full", 8) > 3 * most("full", 2)
    assert most("full", 2) > 3 * most("replay", 2)  # two steps, two micro-batches


@pytest.mark.parametrize(
    ("steps", "spacing", "calls"), [(5, None, 5), (15, None, 15), (15, "leading-code", 16), (20, "quadratic", 20)]
)
def test_as_many_evaluations_as_steps(steps, spacing, calls):
    model, seen = denoiser(), []
    model.network.register_forward_hook(lambda *_: seen.append(1))
    made = Rollout(model, solver("ddim"), grid(model.path, steps, spacing), backprop="full")
    with torch.no_grad():
        made(Batch(images(1)), rng_for(0, 0, 1))
    assert len(seen) == calls


def test_conditions_are_those_of_the_batch_and_guidance_takes_two():
    model = denoiser(dropout=0.0, classes=3)
    batch = Batch(images(), torch.tensor([0, 1, 2, 0]))
    plain, guided = (
        Rollout(model, solver("ddim"), grid(model.path, 2), guidance=w)(batch, rng_for(0, 0, ROWS)) for w in (1.0, 2.0)
    )
    assert not plain.paired
    assert plain.cond is batch.cond
    assert not torch.allclose(plain.x0_hat, guided.x0_hat)
    other = Rollout(model, solver("ddim"), grid(model.path, 2))(Batch(images(), torch.tensor([1, 1, 2, 0])), rng_for(0, 0, ROWS))
    changed = (other.x0_hat != plain.x0_hat).flatten(1).any(1)
    assert changed.tolist() == [True, False, False, False]


class Enlarge(nn.Module):
    """A decoder: latents of 16 px to images of 32 px."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(3, 3, 2, 2)
        self.requires_grad_(False)

    def decode(self, z: Tensor) -> Tensor:
        return self.layer(z).tanh()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_decoding_is_the_last_step_of_a_latent_chain(dropout):
    torch.manual_seed(0)
    model, decoder = denoiser(dropout), Enlarge()
    batch = Batch(torch.rand(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    latents = {"decoder": decoder, "shape": (3, 16, 16)}
    loss, truth = gradient(chain(model, "ddim", backprop="full", **latents), batch=batch)
    for way in ("checkpoint", "replay", "auto"):
        found_loss, found = gradient(chain(model, "ddim", backprop=way, **latents), batch=batch)
        assert found_loss == loss, way
        assert torch.equal(found, truth), way
    if not dropout:
        _, parts = gradient(chain(model, "ddim", backprop="replay", micro=3, **latents), batch=batch)
        assert (parts - truth).norm() < 1e-5 * truth.norm()
    with torch.no_grad():
        plain = chain(model, "ddim")(Batch(images()), rng_for(3, 0, ROWS)).x0_hat
        decoded = chain(model, "ddim", **latents)(batch, rng_for(3, 0, ROWS)).x0_hat
    torch.testing.assert_close(decoded, decoder.decode(plain))
    with pytest.raises(ValueError, match="belong together"):
        chain(model, "ddim", decoder=decoder)


def test_auto_takes_the_whole_graph_where_it_fits(monkeypatch):
    model = denoiser()
    for free, leaf in ((1e12, False), (1.0, True)):
        monkeypatch.setattr(rollout, "free_memory", lambda device, free=free: free)
        est = chain(model, "ddim", backprop="auto")(Batch(images()), rng_for(0, 0, ROWS))
        assert (est.onward is not None) == leaf
    made = chain(model, "ddim", backprop="auto")
    for free in (1.0, 1e12):  # it stays with what it chose first
        monkeypatch.setattr(rollout, "free_memory", lambda device, free=free: free)
        assert made(Batch(images()), rng_for(0, 0, ROWS)).onward is not None
    one = gradient(made)
    assert torch.equal(one[1], gradient(chain(model, "ddim", backprop="replay"))[1])


def test_counting_what_a_graph_would_take_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(rollout, "free_memory", lambda device: 1.0)
    model = denoiser()
    alive = []
    for _ in range(4):
        chain(model, "ddim", backprop="auto")(Batch(images()), rng_for(0, 0, ROWS))
        gc.collect()
        alive.append(len(gc.get_objects()))
    assert alive[-1] - alive[1] < 20


class Narrow(Space):
    """Two frozen features of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 2)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.layer(x.flatten(1)),)


def test_the_space_gets_no_gradient():
    space = Narrow()
    gradient(chain(denoiser(), "ddim", backprop="replay"), Mmd(space, chunk=2))
    assert all(p.grad is None for p in space.parameters())


@pytest.mark.parametrize(("clamp", "passes"), [("straight", True), ("none", True), ("hard", False)])
def test_saturated_pixels(clamp, passes):
    """All pixels far outside: finite always; a hard clamp leaves nothing to learn from."""
    x = (images() * 50).sign() * 50
    x.requires_grad_()
    from percepta.estimate import Estimate

    loss = Mmd(Narrow(), clamp=clamp)(Estimate(x, images(), paired=False))
    (grad,) = torch.autograd.grad(loss, x)
    assert math.isfinite(float(loss.detach()))
    assert bool(grad.isfinite().all())
    assert bool(grad.any()) == passes


def test_what_cannot_be_rolled_out_is_said():
    model = denoiser()
    with pytest.raises(ValueError, match="chooses its steps as it goes"):
        Rollout(model, solver("adaptive"), grid(model.path, 3))
    with pytest.raises(ValueError, match="micro-batch has 1 image"):
        chain(model, "ddim", micro=0)
    with pytest.raises(ValueError, match="one feature per image"):
        Mmd(TwoFeatures())(chain(model, "ddim")(Batch(images()), rng_for(0, 0, ROWS)))


class TwoFeatures(Space):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x


class Plain(nn.Module):
    """The compiler sees this alone: no type is checked in it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, time, cond=None):
        return self.layer(x) + time.reshape(-1, 1, 1, 1) * 1e-3


def test_a_compiled_network_has_two_graphs_one_to_sample_and_one_to_replay():
    from torch._dynamo.utils import counters

    network = Plain()
    model = Denoiser(network, Formulation(LinearBeta(1000), "noise"))
    _, truth = gradient(chain(model, "ddim"))
    model.zero_grad()
    torch._dynamo.reset()
    network.compile(backend="eager")
    counters.clear()
    _, found = gradient(chain(model, "ddim"))
    assert torch.equal(found, truth)
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
