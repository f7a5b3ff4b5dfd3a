"""Structure and its critic: the loss by hand, what splits the batch changes nothing, who gets a gradient, and statistics that never move."""

import weakref
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from percepta.estimate import Estimate
from percepta.formulation import Formulation, Noised
from percepta.networks import Autoencoder
from percepta.objectives import AdversarialStructure, Rounds, Structure, Structures, Term
from percepta.objectives.rows import fingerprints
from percepta.objectives.structure import trainable
from percepta.path import LinearBeta, Rectified, VarianceExploding
from percepta.rng import rng_for
from percepta.spaces import Pixels, Space
from percepta.spaces.opening import open_space
from percepta.spaces.space import enlarging


class Small(Space):
    """A convolution with batch norm, averaged: 16 features of images of any size. `alive` counts the rows whose activations are in memory."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
            nn.init.normal_(self.norm.running_mean, std=0.1)
            nn.init.uniform_(self.norm.running_var, 0.1, 0.3)
        self.calls: list[int] = []
        self.alive = self.most = 0
        self.freeze()

    def forward(self, x):
        self.calls.append(len(x))
        held = self.norm(self.layer(x))
        self.alive += len(x)
        self.most = max(self.most, self.alive)
        weakref.finalize(held, self._gone, len(x))
        return (held.square().mean((2, 3)),)

    def _gone(self, rows: int) -> None:
        self.alive -= rows


def images(count=12, seed=0, dtype=torch.float32, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


def estimate(count=12, t=None, path=None, dtype=torch.float32, side=8, **more):
    x0, x0_hat = images(count, 0, dtype, side), images(count, 1, dtype, side).requires_grad_()
    noised = None if t is None else Noised(x0, x0, torch.as_tensor(t, dtype=torch.float64).expand(count).clone(), x0)
    return Estimate(x0_hat, x0, noised=noised, path=path, **more)


def by_hand(space, est, eta):
    """Row by row, in plain words."""
    with torch.no_grad():
        real, fake = (torch.cat([space(x[None])[0] for x in side]).double() for side in (est.x0, est.x0_hat))
    total, n = 0.0, len(real)
    for i in range(n):
        for j in range(n):
            a, b = (float(f[i] @ f[j] / (f[i].norm() * f[j].norm())) for f in (real, fake))
            total += float(eta[i] * eta[j]) ** 0.5 * (a - b) ** 2
    return total / n**2


TIMES = [
    (LinearBeta(1000), [0.001, 0.05, 0.5, 1.0], [10, 10, 2, 1]),  # (k + 1)/T
    (Rectified(), [0.01, 0.2, 0.5, 0.99], [10, 5, 2, 1 / 0.99]),
    (VarianceExploding(), [0.002, 0.5, 8.0, 80.0], [10, 2, 0.125, 1 / 80]),  # sigma
]


@pytest.mark.parametrize(("path", "t", "eta"), TIMES)
def test_the_loss_is_the_one_by_hand_with_eta_of_every_path(path, t, eta):
    space = Small().double()
    est = estimate(4, torch.tensor(t, dtype=torch.float64), path, torch.float64)
    assert Structures().eta(est).tolist() == pytest.approx(eta)
    expected = by_hand(space, est, eta)
    assert float(Structure(space)(est).detach()) == pytest.approx(expected, rel=1e-9) and expected > 0
    for one, factor in zip(t, eta, strict=True):  # one time for all: eta stands before the sum
        alike = estimate(4, one, path, torch.float64)
        assert float(Structure(space)(alike).detach()) == pytest.approx(by_hand(space, alike, [factor] * 4), rel=1e-9)
    assert float(Structure(space)(estimate(4, dtype=torch.float64)).detach()) == pytest.approx(by_hand(space, est, [1] * 4))
    bounded = replace(Structures(), eta_max=3.0)
    assert bounded.eta(est).max() == 3


def test_the_first_of_a_discrete_paths_times_is_one_of_T_and_the_last_one():
    t = Formulation(LinearBeta(1000), "noise").path.time_of(torch.tensor([0.0, 999.0], dtype=torch.float64))
    assert t.tolist() == pytest.approx([0.001, 1.0])


@pytest.mark.parametrize("how", [Structures(), Structures("euclidean"), Structures("kernel", "l1")])
def test_zero_at_the_truth_and_the_same_in_any_order(how):
    est = estimate(t=0.3, path=Rectified())
    structure = Structure(Small(), how, chunk=5)
    assert structure(replace(est, x0_hat=est.x0.clone())) < 1e-9
    assert structure.told["correlation"] == pytest.approx(1.0, abs=1e-5)
    loss = structure(est).detach()
    assert loss > 1e-4
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = replace(est, x0=est.x0[order], x0_hat=est.x0_hat.detach()[order])
    torch.testing.assert_close(structure(mixed), loss, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("how", [Structures(), Structures("euclidean"), Structures("kernel", "l1")])
def test_a_critic_gains_nothing_by_growing(how):
    space = Small()
    with torch.no_grad():
        loss = Structure(space, how)(estimate())
        space.norm.weight.mul_(30)
        space.norm.bias.mul_(30)
        torch.testing.assert_close(Structure(space, how)(estimate()), loss, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 5, 12, 64])
def test_chunks_change_neither_loss_nor_gradient(chunk, dtype):
    close = {"rtol": 1e-4, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-14}
    found = []
    for size in (None, chunk):
        est = estimate(t=0.3, path=Rectified(), dtype=dtype)
        critic = AdversarialStructure(Small().to(dtype), chunk=size)
        loss = critic(est)
        loss.backward()
        against = critic.critic_loss(est.detach(), rng_for(0, 0, 12))
        against.backward()
        found.append([loss.detach(), est.x0_hat.grad, against.detach(), *(p.grad for p in critic.critic.parameters())])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, **close)
    assert float(found[0][1].abs().max()) > 0


@pytest.mark.parametrize("turn", ["model", "critic"])
def test_an_affinity_of_64_images_takes_the_memory_of_one_chunk(turn):
    most, kept = {}, {}
    for chunk in (None, 4):
        est = estimate(64, side=16)
        critic = AdversarialStructure(Small(), chunk=chunk)
        space = critic.critic
        sizes: dict[int, int] = {}

        def pack(x, sizes=sizes):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = critic(est) if turn == "model" else critic.critic_loss(est.detach(), rng_for(0, 0, 64))
        kept[chunk] = sum(sizes.values())
        loss.backward()
        most[chunk] = space.most
    whole = 64 * 3 * 16 * 16 * 4 * (1 if turn == "model" else 2)  # the images that gradients pass: a critic's are of both sides
    assert kept[None] > 7 * whole and kept[4] < 1.2 * whole, kept
    assert most[None] >= 64 and most[4] <= 8, most


def test_real_images_are_computed_once_in_a_frozen_space_alone():
    space = Small()
    structure = Structure(space, chunk=4)
    for _ in range(3):
        structure(estimate())
    assert space.calls == [4] * (3 + 3 * 3)
    latents = Structure(Pixels(), chunk=4, decoder=Nothing())
    assert latents.rows.known is None  # drawn anew in every epoch


class Nothing(nn.Module):
    def decode(self, z):
        return z


def test_the_models_turn_reaches_no_critic_and_the_critics_no_model():
    est, critic = estimate(t=0.3, path=Rectified()), AdversarialStructure(Small(), chunk=5)
    params = list(critic.critic.parameters())
    critic(est).backward()
    assert all(p.grad is None for p in params) and est.x0_hat.grad.abs().max() > 0
    est.x0_hat.grad = None
    loss = critic.critic_loss(est.detach(), rng_for(0, 0, 12))
    assert float(loss.detach()) == pytest.approx(-float(critic(est).detach()), rel=1e-5)
    loss.backward()
    assert est.x0_hat.grad is None and all(float(p.grad.abs().max()) > 0 for p in params)


def test_a_critic_climbs():
    est, critic = estimate(), AdversarialStructure(Small(), chunk=5)
    before = float(critic(est).detach())
    adam = torch.optim.Adam(critic.critic.parameters(), lr=1e-2)
    for _ in range(10):
        adam.zero_grad()
        critic.critic_loss(est.detach(), rng_for(0, 0, 12)).backward()
        adam.step()
    assert float(critic(est).detach()) > 1.2 * before


def test_a_critic_is_a_copy_whose_statistics_never_move():
    space, est = Small(), estimate()
    critic = AdversarialStructure(space, chunk=5)
    before = {k: v.clone() for k, v in critic.critic.state_dict().items()}
    critic.critic.train()
    adam = torch.optim.Adam(critic.critic.parameters(), lr=1e-2)
    for _ in range(2):
        critic.critic_loss(est.detach(), rng_for(0, 0, 12)).backward()
        critic(est).backward()
        adam.step()
    after = critic.critic.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {"layer.weight", "layer.bias", "norm.weight", "norm.bias"}
    assert not critic.critic.norm.training
    assert all(torch.equal(before[k], v) for k, v in space.state_dict().items())  # the original is nobody's
    assert not any(p.requires_grad for p in space.parameters())


def test_features_are_of_the_weights_that_the_critic_has_now():
    """A step as the loop takes it, with an optimizer that leaves no sign on the weights: nothing of before is used after."""
    est, critic = estimate(), AdversarialStructure(Small(), chunk=5)
    adam = torch.optim.Adam(critic.critic.parameters(), lr=1e-1, fused=True)
    for step in range(3):
        critic.critic_loss(est.detach(), rng_for(0, 0, 12)).backward()
        adam.step()
        adam.zero_grad()
        plain = Structure(critic.critic, memory=0)(est).detach()
        torch.testing.assert_close(critic(est).detach(), plain, rtol=1e-5, atol=1e-9, msg=f"step {step}")
        torch.testing.assert_close(critic(est).detach(), plain, rtol=1e-5, atol=1e-9)  # and from what is kept
    held = {k: v + 0.1 for k, v in critic.critic.state_dict().items()}
    critic.critic.load_state_dict(held)  # as a run that goes back to a checkpoint does
    torch.testing.assert_close(critic(est).detach(), Structure(critic.critic, memory=0)(est).detach(), rtol=1e-5, atol=1e-9)


def test_a_step_in_which_the_critic_moves_keeps_no_features_and_looks_none_up(monkeypatch):
    est, critic = estimate(), AdversarialStructure(Small(), chunk=4)
    asked = []
    monkeypatch.setattr("percepta.objectives.rows.fingerprints", lambda x, real=fingerprints: asked.append(len(x)) or real(x))
    found = []
    for moves in (True, True, False, False):
        if moves:
            critic.critic_loss(est.detach(), rng_for(0, 0, 12))
        found.append(critic(est).detach())
        assert len(critic.rows.known.kept) == (0 if moves else 12)
    assert asked == [12, 12] and all(torch.equal(gap, found[0]) for gap in found)


def test_drift_and_anchor_are_the_distance_from_where_it_began():
    est, space = estimate(), Small()
    critic = AdversarialStructure(space, anchor=5.0, drift=0.2)
    critic(est)
    assert critic.told["drift"] == 0 and critic.limits == {"drift": 0.2}
    plain = AdversarialStructure(space)
    with torch.no_grad():
        for one in (critic, plain):
            one.critic.layer.weight.add_(0.01)
    critic(est)
    count = space.layer.weight.numel()
    whole = sum(float(p.square().sum()) for p in space.parameters())
    assert float(critic.told["drift"]) == pytest.approx((count * 1e-4 / whole) ** 0.5, rel=1e-4)
    rng = rng_for(0, 0, 12)
    anchored, free = critic.critic_loss(est.detach(), rng), plain.critic_loss(est.detach(), rng)
    total = sum(p.numel() for p in space.parameters())
    assert float((anchored - free).detach()) == pytest.approx(5.0 * count * 1e-4 / total, rel=1e-3)
    pulls = [torch.autograd.grad(loss, one.critic.layer.weight)[0] for loss, one in ((anchored, critic), (free, plain))]
    torch.testing.assert_close(pulls[0] - pulls[1], torch.full_like(pulls[0], 5.0 * 2 * 0.01 / total), rtol=1e-2, atol=1e-7)


def test_rounds():
    rounds = Rounds(3, 2)
    assert [rounds.moves(step) for step in range(10)] == [False, False, False, True, True] * 2
    assert all(Rounds(0, 1).moves(step) for step in range(3))
    assert AdversarialStructure(Small(), rounds=rounds).moves(4)


@pytest.mark.parametrize("name", ["alex", "inception-64"])
def test_real_spaces_as_critics(name):
    """Enlarged where images are too small, and the same in the model's turn, which goes past Space.features."""
    space = enlarging(open_space(name, weights="random"), 8)
    critic, est = AdversarialStructure(space, chunk=3), estimate(4)
    torch.testing.assert_close(critic(est).detach(), Structure(space)(est).detach(), rtol=1e-4, atol=1e-8)
    critic.critic_loss(est.detach(), rng_for(0, 0, 4)).backward()
    assert sum(float(p.grad.abs().sum()) for p in critic.critic.parameters() if p.grad is not None) > 0
    assert critic.critic.name == space.name


def autoencoder():
    torch.manual_seed(0)
    return Autoencoder(
        AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(4, 8),
                      norm_num_groups=2, latent_channels=3, mid_block_add_attention=False, sample_size=16)
    ).requires_grad_(False).eval()  # fmt: skip


def test_latents_go_through_the_decoder_a_chunk_at_a_time_with_gradient():
    vae, space = autoencoder(), Small()
    found = []
    for chunk in (None, 5):
        z0, z0_hat = images(), images(seed=1).requires_grad_()
        seen: list[int] = []
        hook = vae.model.decoder.register_forward_hook(lambda m, given, out, seen=seen: seen.append(len(out)))
        structure = AdversarialStructure(space, chunk=chunk, decoder=vae, clamp="none")
        loss = structure(Estimate(z0_hat, z0))
        loss.backward()
        hook.remove()
        assert max(seen) == (chunk or 12)
        found.append((loss.detach(), z0_hat.grad))
    with torch.no_grad():
        decoded = Estimate(vae.decode(images(seed=1)), vae.decode(images()))
        torch.testing.assert_close(found[0][0], Structure(space, clamp="none")(decoded))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)
    assert float(found[0][1].abs().min()) > 0
    assert not any(p.grad is not None for p in vae.parameters())


def test_a_pixel_beyond_the_range_keeps_its_gradient_unless_it_is_asked_not_to():
    grads = {}
    for clamp in ("straight", "hard"):
        x0_hat = (3 * images(4, 1)).requires_grad_()
        Structure(Small(), clamp=clamp)(Estimate(x0_hat, images(4))).backward()
        grads[clamp] = x0_hat.grad[x0_hat.detach().abs() > 1]
    assert float(grads["hard"].abs().max()) == 0 and float(grads["straight"].abs().min()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_under_autocast_it_is_finite_and_nearly_the_same(dtype):
    critic = AdversarialStructure(Small(), chunk=5)
    exact = critic(estimate(t=0.03, path=Rectified())).detach()
    est = estimate(t=0.03, path=Rectified())
    with torch.autocast("cpu", dtype):
        loss = critic(est)
        against = critic.critic_loss(est.detach(), rng_for(0, 0, 12))
    (loss + against).backward()
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(float(exact), rel=0.05)
    assert bool(est.x0_hat.grad.isfinite().all()) and all(bool(p.grad.isfinite().all()) for p in critic.critic.parameters())


def test_a_gate_that_keeps_none_keeps_the_graph():
    est = estimate(t=0.3, path=Rectified())
    loss = Term("structure", Structure(Pixels()), keep=lambda e: torch.zeros(len(e), dtype=torch.bool))(est)
    loss.backward()
    assert loss == 0 and not est.x0_hat.grad.any()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Structures(eta_max=0.0), "eta is bounded by a number above 0, got 0"),
        (lambda: Structures(eta_max=float("inf")), "1/t alone has no mean"),
        (lambda: Rounds(-1, 1), "got -1 and 1"),
        (lambda: Rounds(0, 0), "1 or more with it moving, got 0 and 0"),
        (lambda: AdversarialStructure(Small(), anchor=-1.0), "an anchor is 0 or more"),
        (lambda: AdversarialStructure(Small(), drift=0.0), "a drift above 0"),
        (lambda: AdversarialStructure(Pixels()), "the space pixels has no weights that a critic could train"),
        (lambda: AdversarialStructure(open_space("alex", weights="random", on=Pixels())), "the space alex stands on another"),
        (lambda: trainable(Pixels()), "use inception, clip, dinov2, alex or domain"),
        (lambda: Structure(Pixels())(estimate(paired=False)), "use Mmd for sets that are not paired"),
    ],
)
def test_what_cannot_be_is_told(made, said):
    with pytest.raises(ValueError, match=said):
        made()
