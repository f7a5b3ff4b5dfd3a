"""R9 and more of one optimizer step: micro-batches are the whole batch, a turn moves its player only, clipping comes after the sum."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from duel import Duel
from processes import small_autoencoder
from torch import nn

import percepta.training.step as step_module
from percepta.estimate import Batch, Estimate
from percepta.formulation import Denoiser, Formulation
from percepta.networks import Autoencoder, adapt, load_model
from percepta.objectives import AbstractPerBatch, Denoising, Term, TrainsCritic
from percepta.path import LinearBeta
from percepta.recipes import recipes
from percepta.rng import Rng, rng_for
from percepta.training.method import Method, Pace, Turn
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

RECIPES = {**recipes(), "duel": Duel}
KNOBS = {
    "autoencoder": {"perceptual": "none"},
    "duel": {"dropout": 0.0},
    "ladiffgan": {"source": "shapes:length=6", "latent_gan": "none", "denoising": "none", "channels": 8, "blocks": 1},
    "lpl": {"loss_weight": "0.5"},
    "mmd": {"space": "pixels", "sampler_steps": 2},
    "sadm": {"space": "pixels"},
}
CPU = torch.device("cpu")


def make(name, tiny, rows=7, dtype=torch.float64, **changed):
    """A recipe's method in float64 with its state, settings, and a batch."""
    side = 16 if name == "ladiffgan" else 8
    images = torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=dtype) * 2 - 1
    torch.manual_seed(0)
    needed = {"own": tiny.vae, "other": tiny.vae} if name == "prior" else {}
    recipe = RECIPES[name](**KNOBS.get(name, {}), **needed)
    context = Context(3, side, network=tiny.network, examples=lambda: images.float(), micro_batch=changed.get("micro_batch"))
    if name in ("autoencoder", "casdm", "dual", "prior"):  # the latter are made of presets
        context = replace(context, network=None)
    elif name == "mmd":
        init = Denoiser(adapt(load_model(tiny.network)), Formulation(LinearBeta(1000), "noise"))
        context = replace(context, network=None, init=init)
    elif name == "ladiffgan":
        context = replace(context, network=None, source_examples=context.examples)
    elif name == "lpl":
        context = replace(context, vae=Autoencoder(small_autoencoder()).to(dtype))
    method = recipe.build(context)
    if name in ("casdm", "dual", "prior"):  # their last layers begin at zero, and let no gradient through
        for p in method.model.parameters():
            p.data += 0.05 * torch.randn(p.shape)
    for player in method.players.values():
        player.to(dtype).train()
    settings = Settings(**{"batch": rows, "clip": None, "steps": 10, "lr": 1e-3, **changed})
    return (
        method,
        make_state(method, settings, CPU),
        settings,
        Batch(images, source=images.flip(-1) if name == "ladiffgan" else None),
    )


def gradients(state):
    """What each player's optimizer was given in the first step: Adam's first moment is a tenth of it."""
    return {
        (name, k): 10 * player.optimizer.state[p]["exp_avg"]
        for name, player in state.players.items()
        for k, p in player.module.named_parameters()
        if p in player.optimizer.state
    }


def gap(a, b):
    """The largest difference, in units of each player's largest gradient."""
    assert a.keys() == b.keys()
    most = {name: max(float(v.abs().max()) for (player, _), v in a.items() if player == name) for name, _ in a}
    return max(float((a[k] - b[k]).abs().max()) / most[k[0]] for k in a)


@pytest.mark.parametrize("name", RECIPES)
def test_micro_batches_give_the_gradient_and_the_logs_of_the_whole_batch(name, tiny):
    method, state, settings, batch = make(name, tiny)
    whole = take_step(method, state, settings, batch, rng_for(0, 0, 7))
    expected = gradients(state)
    assert len({player for player, _ in expected}) == len(method.players)
    assert all(float(v.abs().max()) > 0 for (_, k), v in expected.items() if k.endswith("conv_in.weight") or k == "0.weight")
    for size in (1, 2, 3):
        method, state, settings, batch = make(name, tiny, micro_batch=size)
        report = take_step(method, state, settings, batch, rng_for(0, 0, 7))
        # an autoencoder's latents and images are float32 whatever its weights are (networks/autoencoders.py)
        assert gap(expected, gradients(state)) <= {"autoencoder": 1e-6, "prior": 1e-5}.get(name, 1e-12), size
        assert report.losses == pytest.approx(whole.losses, rel=1e-6)
        assert report.norms == pytest.approx(whole.norms, rel=1e-6)


def test_the_gradient_is_clipped_after_all_micro_batches(tiny):
    norms = []
    for size in (None, 2):
        method, state, settings, batch = make("ddpm", tiny, clip=1e-3, micro_batch=size)
        report = take_step(method, state, settings, batch, rng_for(0, 0, 7))
        norms.append(report.norms["model"])
        given = torch.cat([g.reshape(-1) for g in gradients(state).values()])
        assert float(given.norm()) == pytest.approx(1e-3, rel=1e-4)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 0.01  # what is reported is the norm before


def test_one_part_at_a_time_is_alive(tiny):
    """Each micro-batch goes backward before the next goes forward: that is what saves memory."""
    method, state, settings, batch = make("ddpm", tiny, rows=6, micro_batch=2)
    events, estimate = [], method.estimate

    def watched(part, rng):
        est = estimate(part, rng)
        events.append(("forward", rng.ordinals))
        est.x0_hat.register_hook(lambda grad: events.append(("backward", rng.ordinals)))
        return est

    method.estimate = watched
    take_step(method, state, settings, batch, rng_for(0, 0, 6))
    assert events == [(way, part) for part in ((0, 1), (2, 3), (4, 5)) for way in ("forward", "backward")]


class Mean(AbstractPerBatch):
    """A function of the set: the squared difference of the mean images."""

    def __call__(self, est: Estimate) -> torch.Tensor:
        return ((est.x0_hat.mean(0) - est.x0.mean(0)) ** 2).mean()


def test_a_term_of_the_set_gets_the_whole_batch(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=6, micro_batch=2)
    seen, estimate = [], method.estimate
    method = Method(method.model, lambda b, r: (seen.append(len(b)), estimate(b, r))[1], [Term("mean", Mean())], method.product)
    take_step(method, state, settings, batch, rng_for(0, 0, 6))
    assert seen == [6]


def test_a_turn_moves_its_player_only(tiny, monkeypatch):
    method, state, settings, batch = make("duel", tiny, rows=4)
    real, moved = step_module._move, []

    def spy(player):
        before = {name: {k: v.clone() for k, v in p.module.state_dict().items()} for name, p in state.players.items()}
        for name, other in state.players.items():
            assert name == player.name or all(p.grad is None for p in other.params), "a turn leaves no gradient on others"
        real(player)
        changed = {
            name
            for name, p in state.players.items()
            if any(not torch.equal(v, before[name][k]) for k, v in p.module.state_dict().items())
        }
        moved.append((player.name, changed))

    monkeypatch.setattr(step_module, "_move", spy)
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert moved == [("fooled", {"fooled"}), ("model", {"model"})]
    assert set(report.losses) == {"critic/fooled", "denoising", "fooled"}
    assert set(report.norms) == {"fooled", "model"}


def test_the_model_sees_the_critic_that_has_moved(tiny):
    method, state, settings, batch = make("duel", tiny, rows=4, lr=0.5)
    critic = next(term.objective.critic for term in method.terms if term.name == "fooled")
    before = [p.clone() for p in critic.parameters()]
    seen = []
    critic.register_forward_hook(lambda module, _in, _out: seen.append(torch.equal(next(module.parameters()), before[0])))
    take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert seen == [True, True, False]


def test_bf16_runs_the_network_in_bf16_and_keeps_everything_else_in_float32(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=4, dtype=torch.float32, mixed_precision="bf16")
    seen = []
    convolution = next(m for m in method.model.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda _m, _in, out: seen.append(out.dtype))
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert seen == [torch.bfloat16]
    assert report.bad is None
    assert all(math.isfinite(v) for v in (*report.losses.values(), *report.norms.values()))
    assert {p.dtype for p in method.model.parameters()} == {torch.float32}
    assert {g.dtype for g in gradients(state).values()} == {torch.float32}
    plain, plain_state, plain_settings, _ = make("ddpm", tiny, rows=4, dtype=torch.float32)
    exact = take_step(plain, plain_state, plain_settings, batch, rng_for(0, 0, 4))
    assert report.losses["denoising"] == pytest.approx(exact.losses["denoising"], rel=0.05)


def copies(state):
    return [v.clone() for player in state.players.values() for v in player.module.state_dict().values()]


def spoil(method, value=float("nan")):
    estimate = method.estimate

    def spoilt(batch, rng):
        est = estimate(batch, rng)
        return dataclasses.replace(est, x0_hat=est.x0_hat * torch.tensor(value)) if rng.step == 0 else est

    method.estimate = spoilt


def test_a_turn_that_is_not_finite_moves_nothing_and_is_named(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=4)
    spoil(method)
    before = copies(state)
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert report.bad == "term 'denoising' is nan"
    assert all(torch.equal(a, b) for a, b in zip(before, copies(state), strict=True))
    assert not state.players["model"].optimizer.state
    assert all(p.grad is None for p in state.players["model"].params)


def test_a_gradient_that_is_not_finite_is_named_with_its_player_and_parameter(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=4)
    name, weight = next((k, p) for k, p in method.model.named_parameters() if k.endswith("conv_out.weight"))
    weight.register_hook(lambda grad: grad * float("inf"))
    before = copies(state)
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert report.bad is not None
    assert "player 'model'" in report.bad
    assert name in report.bad
    assert all(torch.equal(a, b) for a, b in zip(before, copies(state), strict=True))


def scaled(tiny, scale):
    method, state, settings, batch = make("ddpm", tiny, rows=4, dtype=torch.float32)
    state.players["model"].scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return method, state, settings, batch


def test_a_loss_scale_that_overflows_skips_the_step_and_falls(tiny):
    method, state, settings, batch = scaled(tiny, 2.0**127)
    method.terms = [dataclasses.replace(method.terms[0], scale=1e4)]
    before = copies(state)
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert report.bad is None
    assert not math.isfinite(report.norms["model"])
    assert state.players["model"].scaler.get_scale() == 2.0**126
    assert all(torch.equal(a, b) for a, b in zip(before, copies(state), strict=True))


def test_a_loss_scale_changes_nothing_where_nothing_overflows(tiny):
    results = []
    for scale in (None, 2.0**10):
        method, state, settings, batch = scaled(tiny, scale) if scale else make("ddpm", tiny, rows=4, dtype=torch.float32)
        results.append((take_step(method, state, settings, batch, rng_for(0, 0, 4)), gradients(state)))
    assert gap(results[0][1], results[1][1]) < 1e-5
    assert results[0][0].losses == pytest.approx(results[1][0].losses, rel=1e-6)


def test_after_a_bad_loss_the_loss_scale_goes_on(tiny):
    method, state, settings, batch = scaled(tiny, 2.0**4)
    spoil(method)
    assert take_step(method, state, settings, batch, rng_for(0, 0, 4)).bad is not None
    state.step += 1
    assert take_step(method, state, settings, batch, rng_for(0, 4, 4, step=1)).bad is None
    assert state.players["model"].optimizer.state


def test_a_gradient_that_is_not_finite_at_the_least_loss_scale_is_no_overflow(tiny):
    method, state, settings, batch = scaled(tiny, 1.0)
    next(p for k, p in method.model.named_parameters() if k.endswith("conv_out.weight")).register_hook(lambda g: g * float("nan"))
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    assert report.bad is not None
    assert "gradient of player 'model'" in report.bad


def test_a_signal_that_comes_in_the_step_is_in_its_report(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=4)
    came, estimate = [], method.estimate
    method.estimate = lambda b, r: (came.append(True), estimate(b, r))[1]
    assert take_step(method, state, settings, batch, rng_for(0, 0, 4), lambda: bool(came)).stop
    assert not take_step(method, state, settings, batch, rng_for(0, 0, 4)).stop


def test_turns_hand_their_scale_to_a_backward_of_their_own(tiny):
    method, state, settings, batch = make("ddpm", tiny, rows=4, micro_batch=3)
    scales = []

    class Own(Method):
        def step(self, batch, rng):
            for turn in super().step(batch, rng):
                yield Turn(turn.player, turn.loss, turn.logs, lambda s, loss=turn.loss: (scales.append(s), (loss * s).backward()))

    plain, plain_state, plain_settings, _ = make("ddpm", tiny, rows=4, micro_batch=3)
    take_step(plain, plain_state, plain_settings, batch, rng_for(0, 0, 4))
    own = Own(method.model, method.estimate, [Term("denoising", Denoising(), weight=method.terms[0].weight)], method.product)
    take_step(own, state, settings, batch, rng_for(0, 0, 4))
    assert scales == [0.75, 0.25]
    assert gap(gradients(plain_state), gradients(state)) == 0


class Watched(AbstractPerBatch, TrainsCritic):
    """Tells how far its critic has come, which may be one step at most; it moves in every other step."""

    limits, advice = {"far": 1.5}, "go more slowly"

    def __init__(self) -> None:
        self.critic = nn.Linear(1, 1, bias=False).double()
        self.told = {}
        nn.init.zeros_(self.critic.weight)

    def moves(self, step: int) -> bool:
        return step % 2 == 1

    def __call__(self, est: Estimate) -> torch.Tensor:
        self.told = {"far": self.critic.weight.detach().abs().sum()}
        return est.x0_hat.square().mean()

    def critic_loss(self, est: Estimate, rng: Rng) -> torch.Tensor:
        return -self.critic.weight.sum()


def test_a_critic_moves_in_its_steps_at_its_pace_and_stops_at_its_limit(tiny):
    """What it tells is of a critic that has moved; beyond its limit the model does not follow it."""
    method, _, settings, batch = make("ddpm", tiny, rows=4, lr=1e-3, warmup=0)
    method = Method(
        method.model,
        method.estimate,
        [*method.terms, Term("watched", Watched(), 0.1)],
        method.product,
        paces={"watched": Pace(1.0, None)},
    )
    state, seen = make_state(method, settings, CPU), []
    for step in range(5):
        before = [p.detach().clone() for p in state.players["model"].params]
        report = take_step(method, state, settings, batch, rng_for(0, 4 * step, 4, step))
        moved = any(not torch.equal(a, b) for a, b in zip(before, state.players["model"].params, strict=True))
        seen.append(("critic/watched" in report.losses, round(report.losses["watched/far"], 3), moved, report.beyond))
        state.step += 1
    said = "watched/far is 2, above 1.5: go more slowly"
    assert seen == [
        (False, 0, True, None),
        (True, 1, True, None),
        (False, 1, True, None),
        (True, 2, False, said),
        (False, 2, False, said),
    ]


def test_a_critic_is_clipped_by_its_own_pace(tiny):
    method, _, settings, batch = make("duel", tiny, rows=4, clip=1e-2)
    method.paces = {"fooled": Pace(1e-3, 1e-4)}
    state = make_state(method, settings, CPU)
    report = take_step(method, state, settings, batch, rng_for(0, 0, 4))
    given = {
        name: torch.cat([g.reshape(-1) for (n, _), g in gradients(state).items() if n == name]).norm() for name in state.players
    }
    assert float(given["fooled"]) == pytest.approx(1e-4, rel=1e-3) and float(given["model"]) == pytest.approx(1e-2, rel=1e-3)
    assert report.norms["fooled"] > 1e-3
    for lr, clip in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="are above 0"):
            Pace(lr, clip)
