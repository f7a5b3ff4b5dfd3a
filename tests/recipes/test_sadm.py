"""sadm: which steps are whose, who moves in a turn, the loss in float64 by hand, and what is refused."""

import math
from dataclasses import replace

import processes
import pytest
import torch
from processes import FLAGS, lines
from safetensors.torch import load_file
from torch import nn

import percepta.training.step as step_module
from percepta.cli import main
from percepta.cli.train import read
from percepta.estimate import Batch
from percepta.formulation import EDM
from percepta.recipes.sadm import PRESETS, TrainSadm
from percepta.rng import rng_for
from percepta.spaces import Space
from percepta.spaces.opening import open_space
from percepta.training import checkpoint
from percepta.training.job import prepare_networks, train
from percepta.training.loop import NonFinite
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step


class Small(Space):
    """A convolution with batch norm, averaged."""

    def __init__(self, name: str = "alex", seed: int = 4) -> None:
        super().__init__()
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer, self.norm = nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12)
            nn.init.uniform_(self.norm.running_var, 0.1, 0.3)
        self.freeze()

    def forward(self, x):
        return (self.norm(self.layer(x)).relu().mean((2, 3)),)


@pytest.fixture(autouse=True)
def _small_spaces(monkeypatch):
    monkeypatch.setattr(
        "percepta.recipes.sadm.open_space",
        lambda name, domain=None: open_space(name) if name == "pixels" else Small(name, len(name)),
    )


def made(**knobs):
    return TrainSadm(**{"space": "alex", **knobs})


def settings(tiny, out, **changed):
    return replace(TrainSadm.default_settings(), **{**FLAGS, "network": tiny.network, "out": out, **changed})


def images(count=8, dtype=torch.float64, seed=3):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 - 1


def ready(tiny, dtype=torch.float64, **knobs):
    """A method and all that a step of it needs."""
    torch.manual_seed(0)
    micro = knobs.pop("micro", None)
    knobs = {"structure_weight": 1.0, "sg_steps": 1, "sat_steps": 1, **knobs}
    method = made(**knobs).build(Context(3, 8, network=tiny.network, micro_batch=micro))
    for player in method.players.values():
        player.to(dtype)
    given = Settings(batch=8, clip=None, steps=10, lr=1e-3, device="cpu")
    prepare_networks(method, given, torch.device("cpu"))
    return method, make_state(method, given, torch.device("cpu")), given, Batch(images(dtype=dtype))


@pytest.mark.parametrize(
    ("knobs", "steps", "found"),
    [
        ({}, 700, (600, 100, 700)),
        ({}, 8, (7, 1, 8)),
        ({}, 6, (6, 0, 6)),
        ({"rounds": 2}, 700, (300, 50, 700)),
        ({"sat_steps": 0}, 700, (700, 0, 700)),
        ({"sat_steps": 700}, 700, (0, 700, 700)),
        ({"sat_steps": 50, "rounds": 2}, 700, (300, 50, 700)),
        ({"sg_steps": 24_000, "sat_steps": 4_000}, None, (24_000, 4_000, 28_000)),
        ({"sg_steps": 10, "sat_steps": 2, "rounds": 4}, None, (10, 2, 48)),
        ({"sg_steps": 10, "sat_steps": 2, "rounds": 4}, 48, (10, 2, 48)),
        ({"sg_steps": 10}, None, (10, 0, 10)),
        ({"sg_steps": 10}, 14, (10, 4, 14)),
        ({"sg_steps": 0, "sat_steps": 5}, None, (0, 5, 5)),
        ({"structure_weight": 0.0}, 700, (700, 0, 700)),
        ({"structure_weight": 0.0, "sat_steps": 0, "rounds": 2}, 700, (350, 0, 700)),
        ({"structure_weight": 0.0, "sg_steps": 10}, 10, (10, 0, 10)),
    ],
)
def test_two_or_three_counts_say_the_rest(knobs, steps, found):
    given = TrainSadm.default_settings()
    given = given if steps is None else replace(given, steps=steps)
    recipe, chosen = made(**knobs).settled(given)
    assert (recipe.sg_steps, recipe.sat_steps, chosen.steps) == found
    assert recipe.settled(chosen) == (recipe, chosen)  # as --resume reads them from config.json


@pytest.mark.parametrize(
    ("knobs", "steps", "said"),
    [
        ({"rounds": 3}, 700, "--steps 700 are not 3 rounds of equal length"),
        ({"sat_steps": 800}, 700, "--sat-steps 800 are more than the 700 steps of a round"),
        ({"sg_steps": 0, "sat_steps": 0}, None, "trains nothing"),
        ({"sg_steps": 5, "sat_steps": 1}, 7, "--steps 7 is not what --sg-steps 5, --sat-steps 1 and --rounds 1 come to, 6"),
        ({"sg_steps": 10}, 4, "give --steps 10"),
        (
            {"structure_weight": 0.0, "sat_steps": 5},
            700,
            "--structure-weight 0 leaves the structure out, and --sat-steps 5 train a critic",
        ),
        ({"structure_weight": 0.0, "sg_steps": 10}, 14, "--steps 14 is not what --sg-steps 10, --sat-steps 0"),
    ],
)
def test_counts_that_contradict_each_other(knobs, steps, said):
    given = TrainSadm.default_settings()
    with pytest.raises(ValueError, match=said):
        made(**knobs).settled(given if steps is None else replace(given, steps=steps))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"structure_weight": -1.0}, "--structure-weight must be 0 or more, got -1"),
        ({"structure_weight": math.inf}, "--structure-weight must be 0 or more"),
        ({"structure_weight": math.nan}, "--structure-weight must be 0 or more"),
        ({"structure_weight": 0.0, "structure_share": 0.2}, "--structure-weight 0 leaves the structure out"),
        ({"sg_steps": -1}, "--sg-steps must be at least 0, got -1"),
        ({"sat_steps": -1}, "--sat-steps must be at least 0, got -1"),
        ({"rounds": 0}, "--rounds must be at least 1, got 0"),
        ({"eta_max": 0.0}, "--eta-max must be above 0, got 0"),
        ({"critic_lr": 0.0}, "--critic-lr must be above 0, got 0"),
        ({"critic_clip": -1.0}, "--critic-clip must be above 0, got -1"),
        ({"critic_anchor": -1.0}, "--critic-anchor must be 0 or more, got -1"),
        ({"critic_weight_decay": -1.0}, "--critic-weight-decay must be 0 or more, got -1"),
        ({"critic_drift": 0.0}, "--critic-drift must be above 0, got 0"),
    ],
)
def test_wrong_flags_are_named(knobs, said):
    with pytest.raises(ValueError, match=said):
        made(**knobs)


@pytest.mark.parametrize(
    ("knobs", "batch", "said"),
    [
        ({"sat_steps": 0}, 1, "a batch of 1 has no structure"),
        ({"sat_steps": 0, "critic_lr": 1e-3, "critic_clip": None}, 4, "--critic-lr, --critic-clip: this run has no critic"),
        ({"critic_anchor": 1.0}, 4, "--critic-anchor: this run has no critic"),  # a seventh of 6 steps is none
    ],
)
def test_flags_without_an_effect_are_named(tiny, tmp_path, knobs, batch, said):
    with pytest.raises(ValueError, match=said):
        train(made(**knobs), settings(tiny, tmp_path / "run", batch=batch), quiet=True)
    recipe, given = made(**knobs, structure_weight=0.0).settled(settings(tiny, tmp_path / "run", batch=batch))
    recipe.check(given)  # no structure: whatever would judge it


@pytest.mark.parametrize("preset", ["paper-imagenet256", "paper-imagenet512"])
def test_what_is_made_for_latents_reads_no_large_pixels(preset):
    recipe, given = read(TrainSadm, ["--preset", preset])
    recipe, given = recipe.settled(given)
    with pytest.raises(ValueError, match=f"--network dit-xl-2 is made for latents, and at --size {given.size} .* --vae"):
        recipe.check(given)
    recipe.check(replace(given, vae="./vae"))
    recipe.check(replace(given, size=32))


def goes_on(folder, *flags):
    """What a command with --resume comes to, from the config.json of the run."""
    recipe, given = read(TrainSadm, ["--out", str(folder), "--resume", *flags])
    return recipe.settled(given)


def test_what_is_recorded_of_a_run_that_went_on_is_what_was_trained(tiny, tmp_path):
    """Further rounds are rounds, and the folder's config.json begins the same run again."""
    run = tmp_path / "run"
    train(made(sg_steps=2, sat_steps=1), settings(tiny, run, steps=3, device="cpu"), quiet=True)
    train(*goes_on(run, "--steps", "6"), quiet=True)
    recipe, given = read(TrainSadm, ["--config", str(run / "config.json")])
    assert (recipe.sg_steps, recipe.sat_steps, recipe.rounds, given.steps) == (2, 1, 2, 6)
    assert recipe.settled(given) == (recipe, given)
    straight = train(recipe, replace(given, out=tmp_path / "straight"), quiet=True).folder
    assert (straight / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match="rounds of 3 steps goes on by whole rounds, .* --steps 9 for 3 rounds$"):
        goes_on(run, "--steps", "8")
    with pytest.raises(ValueError, match="give --steps 12 for 4 rounds, or 9 for 3$"):
        goes_on(run, "--steps", "10")
    with pytest.raises(ValueError, match="--steps 6 is not what .* and --rounds 3 come to, 9: .* give --steps 9"):
        goes_on(run, "--rounds", "3")
    assert goes_on(run, "--rounds", "3", "--steps", "9")[0].rounds == 3
    usual = str(TrainSadm.default_settings().steps)  # the default number, but said, and the run goes beyond it
    with pytest.raises(ValueError, match=f"--steps {usual} end within one: give --steps 2001 for 667 rounds"):
        goes_on(run, "--steps", usual)


def test_a_run_without_a_critic_goes_on_by_any_number_of_steps(tiny, tmp_path):
    run = tmp_path / "run"
    train(made(sat_steps=0), settings(tiny, run, steps=3, device="cpu"), quiet=True)
    train(*goes_on(run, "--steps", "4"), quiet=True)
    recipe, given = read(TrainSadm, ["--config", str(run / "config.json")])
    assert (recipe.sg_steps, recipe.sat_steps, recipe.rounds, given.steps) == (4, 0, 1, 4)
    recipe.settled(given)
    with pytest.raises(ValueError, match="was started with --sat-steps 0 "):
        train(*goes_on(run, "--sg-steps", "4", "--sat-steps", "1", "--steps", "5"), quiet=True)


def test_pixels_cannot_be_a_critic_and_no_structure_has_none(tiny):
    context = Context(3, 8, network=tiny.network)
    with pytest.raises(ValueError, match="the space pixels has no weights that a critic could train: .*--sat-steps 0"):
        made(space="pixels", sg_steps=1, sat_steps=1).build(context)
    plain = made(structure_weight=0.0, sg_steps=1, sat_steps=1).build(context)
    assert [term.name for term in plain.terms] == ["denoising"] and list(plain.players) == ["model"]
    assert not made(sg_steps=1, sat_steps=1).build(replace(context, trains=False)).terms[1:]
    held = made(sg_steps=2, sat_steps=0).build(context)
    assert list(held.players) == ["model"] and held.terms[1].name == "structure"


def test_a_turn_moves_its_player_only_and_statistics_never_move(tiny, monkeypatch):
    method, state, given, batch = ready(tiny)
    real, moved = step_module._move, []

    def spy(player):
        before = {name: {k: v.clone() for k, v in p.module.state_dict().items()} for name, p in state.players.items()}
        for name, other in state.players.items():
            assert name == player.name or all(p.grad is None for p in other.params)
        real(player)
        changed = {
            (name, k)
            for name, p in state.players.items()
            for k, v in p.module.state_dict().items()
            if not torch.equal(v, before[name][k])
        }
        moved.append((player.name, {name for name, _ in changed}))
        assert not [k for _, k in changed if "running" in k or "num_batches" in k]

    monkeypatch.setattr(step_module, "_move", spy)
    for step in range(4):
        report = take_step(method, state, given, batch, rng_for(0, 8 * step, 8, step))
        state.step += 1
        critic = {"critic/structure"} if step % 2 else set()
        assert set(report.losses) == {"denoising", "structure", "structure/correlation", "structure/drift"} | critic
        assert (report.losses["structure/drift"] > 0) == (step > 0)
        if critic:  # the same with xh held, before the critic has moved
            assert report.losses["critic/structure"] == pytest.approx(-report.losses["structure"], rel=0.05)
    alone, both = [("model", {"model"})], [("structure", {"structure"}), ("model", {"model"})]
    assert moved == [*alone, *both, *alone, *both]


def test_the_critic_has_a_pace_of_its_own(tiny):
    method, _, given, _ = ready(tiny, critic_lr=1e-4, critic_clip=0.5)
    state = make_state(method, replace(given, clip=2.0, weight_decay=0.3), torch.device("cpu"))
    decays = {name: player.optimizer.param_groups[0]["weight_decay"] for name, player in state.players.items()}
    assert decays == {"model": 0.3, "structure": 0.0}
    method.paces = ready(tiny, critic_weight_decay=0.1)[0].paces
    assert make_state(method, given, torch.device("cpu")).players["structure"].optimizer.param_groups[0]["weight_decay"] == 0.1
    assert {n: (given.lr * p.pace, p.clip) for n, p in state.players.items()} == {
        "model": (pytest.approx(1e-3), 2.0),
        "structure": (pytest.approx(1e-4), 0.5),
    }
    critic = state.players["structure"]
    before = [p.detach().clone() for p in critic.params]
    state.step = 1
    take_step(method, state, given, Batch(images()), rng_for(0, 0, 8, 1))
    assert critic.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    most = max(float((a - b).detach().abs().max()) for a, b in zip(before, critic.params, strict=True))
    assert most == pytest.approx(1e-4, rel=1e-2)  # Adam's first step


def gradient(method, batch, step=0, seed=0):
    rng = rng_for(seed, 0, 8, step)
    *_, turn = method.step(batch, rng)
    params = dict(method.model.named_parameters())
    found = torch.autograd.grad(turn.loss, list(params.values()), allow_unused=True)
    return float(turn.loss.detach()), {k: g for k, g in zip(params, found, strict=True) if g is not None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_micro_batches_change_nothing(tiny, dtype):
    """The network and the space, both some rows at a time."""
    method, _, _, batch = ready(tiny, dtype)
    loss, whole = gradient(method, batch)
    most = max(float(g.abs().max()) for g in whole.values())
    for micro in (1, 3):
        parts, *_ = ready(tiny, dtype, micro=micro)
        assert parts.estimate.micro == micro and parts.terms[1].objective.rows.chunk == micro
        again, found = gradient(parts, batch)
        assert again == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 1e-12)
        assert max(float((found[k] - g).abs().max()) for k, g in whole.items()) < (1e-4 if dtype == torch.float32 else 1e-12) * most


@pytest.mark.parametrize("times_per", ["batch", "sample"])
def test_edms_preconditioning_with_the_structure_is_the_one_by_hand_in_float64(tiny, times_per):
    """Karras et al. 2022, table 1, and the loss of the paper's equation with a sum over pairs."""
    method, _, _, batch = ready(tiny, times_per=times_per, structure_weight=0.7, sat_steps=0)
    space = method.terms[1].objective.space.double()
    loss, found = gradient(method, batch)
    formulation, rng = method.model.formulation, rng_for(0, 0, 8)
    assert (formulation.path, formulation.output, formulation.times) == (EDM.path, EDM.output, EDM.times)
    sigma = method.estimate(batch, rng).t
    assert sigma.dtype == torch.float64 and len(set(sigma.tolist())) == (1 if times_per == "batch" else 8)
    s, sd, y = sigma.reshape(-1, 1, 1, 1), 0.5, batch.x0
    noisy = y + s * rng.normal("eps", (3, 8, 8), torch.float64)
    out = method.model.network(noisy / (s**2 + sd**2).sqrt(), (sigma.log() / 4).float(), None)
    guess = sd**2 / (s**2 + sd**2) * noisy + s * sd / (s**2 + sd**2).sqrt() * out
    plain = ((s**2 + sd**2) / (s * sd) ** 2 * (guess - y).square()).flatten(1).mean(1).mean()
    real, fake = space(y)[0], space(guess + (guess.clamp(-1, 1) - guess).detach())[0]
    eta = (1 / sigma).clamp(max=10)
    structure = 0.0
    for i in range(8):
        for j in range(8):
            one, two = (f[i] @ f[j] / (f[i].norm() * f[j].norm()) for f in (real, fake))
            structure = structure + (eta[i] * eta[j]).sqrt() * (one - two) ** 2
    by_hand = plain + 0.7 * structure / 64
    assert loss == pytest.approx(float(by_hand.detach()), rel=1e-9) and float(structure.detach()) > 1e-6
    params = dict(method.model.named_parameters())
    expected = torch.autograd.grad(by_hand, [params[k] for k in found])
    most = max(float(g.abs().max()) for g in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(found.values(), expected, strict=True)) < 1e-9 * most


def test_all_rows_of_a_step_have_one_time_and_steps_have_others(tiny):
    method, _, _, batch = ready(tiny)
    rng = rng_for(0, 0, 8, 5)
    times = [method.estimate(batch, rng_for(0, 8 * k, 8, k)).t for k in range(20)]
    assert all(len(set(t.tolist())) == 1 for t in times) and len({float(t[0]) for t in times}) == 20
    part = method.estimate(batch.select(slice(3, 5)), rng.select(slice(3, 5))).t
    assert torch.equal(part, method.estimate(batch, rng).t[3:5])


def test_a_critic_that_leaves_its_space_stops_the_run_and_the_last_checkpoint_is_of_before(tiny, tmp_path):
    """Whatever is done about losses that are not finite: it is no accident, and would come again."""
    for how in ("stop", "skip"):
        run = tmp_path / how
        given = settings(tiny, run, steps=10, checkpoint_every=1, keep=20, on_nonfinite=how)
        with pytest.raises(NonFinite) as error:
            train(made(sg_steps=2, sat_steps=8, critic_lr=1e-2, critic_drift=0.05), given, quiet=True)
        message, found = str(error.value), lines(run)
        last = found[-1]["step"]
        assert f"step {last + 1}: structure/drift is 0." in message and "above 0.05" in message
        assert "--critic-lr" in message and "--critic-anchor" in message and "--on-nonfinite" not in message
        assert 2 <= last < 10 and all(line["structure/drift"] <= 0.05 for line in found)
        assert f"The last good checkpoint is {run / f'checkpoint-{last}'}." in message
        good = checkpoint.load(run / f"checkpoint-{last}").tensors["weights-structure"]
        start = dict(Small().named_parameters())
        away = sum(float((good[k] - v).detach().square().sum()) for k, v in start.items())
        assert (away / sum(float(v.detach().square().sum()) for v in start.values())) ** 0.5 <= 0.05
    assert (
        main(["train", "sadm", *tiny.flags(tmp_path / "cli", steps=4, sat_steps=4, space="alex", critic_lr=0.1, critic_drift=0.01)])
        == 1
    )


def test_a_step_that_is_not_finite_is_skipped_whoever_it_hits(tiny, tmp_path, monkeypatch):
    """The critic's turn fails in one step: nobody moves, and the run goes on."""
    from percepta.objectives import AdversarialStructure

    real = AdversarialStructure.critic_loss

    def spoilt(self, est, rng):
        return real(self, est, rng) * (math.nan if rng.step == 3 else 1)

    monkeypatch.setattr(AdversarialStructure, "critic_loss", spoilt)
    knobs = {"sg_steps": 2, "sat_steps": 4}
    with pytest.raises(NonFinite, match="step 4: term 'critic/structure' is nan"):
        train(made(**knobs), settings(tiny, tmp_path / "stop"), quiet=True)
    outcome = train(made(**knobs), settings(tiny, tmp_path / "skip", checkpoint_every=1, keep=20, on_nonfinite="skip"), quiet=True)
    assert outcome.finished
    three, four = (checkpoint.load(outcome.folder / f"checkpoint-{k}") for k in (3, 4))
    for stem in ("weights-model", "weights-structure"):
        assert all(torch.equal(v, four.tensors[stem][k]) for k, v in three.tensors[stem].items())


@pytest.mark.parametrize(
    "knobs", [{}, {"predict": "eps"}, {"predict": "flow"}, {"predict": "v", "relation": "kernel", "distance": "l1"}]
)
def test_it_trains_what_the_network_predicts_and_diffusers_reads_the_end(tiny, tmp_path, knobs, capsys):
    from diffusers import DiffusionPipeline

    outcome = train(made(sg_steps=2, sat_steps=1, **knobs), settings(tiny, tmp_path / "run", steps=3), quiet=True)
    pipeline = DiffusionPipeline.from_pretrained(outcome.model, trust_remote_code=True)
    assert type(pipeline.scheduler).__name__ in str(pipeline.config)
    picture = tmp_path / "grid.png"
    assert main(["sample", str(outcome.folder), "--num", "2", "--steps", "2", "--out", str(picture), "--device", "cpu"]) == 0
    assert picture.stat().st_size > 0
    if not knobs:  # it begins another, with the same meaning of its output
        further = settings(tiny, tmp_path / "on", network=None, init=str(outcome.folder), steps=2)
        assert train(made(sat_steps=1), further, quiet=True).finished
        with pytest.raises(ValueError, match="--init predicts 'edm'"):
            train(made(sat_steps=1, predict="eps"), replace(further, out=tmp_path / "no"), quiet=True)


def test_latents_are_decoded_and_what_judges_reaches_the_network_through_it(tiny, tmp_path):
    from percepta.networks import Autoencoder

    given = settings(tiny, tmp_path / "run", vae=tiny.vae, size=16, steps=4, cache=tmp_path / "cache")
    outcome = train(made(predict="eps", sg_steps=2, sat_steps=2, critic_lr=1e-3), given, quiet=True)
    assert outcome.finished and lines(outcome.folder)[-1]["critic/structure"] < 0
    vae = Autoencoder(processes.small_autoencoder()).requires_grad_(False).eval()
    torch.manual_seed(0)
    method = made(sg_steps=1, sat_steps=1).build(Context(3, 8, network=tiny.network, vae=vae, micro_batch=3))
    method.terms = [term for term in method.terms if term.name == "structure"]
    _, found = gradient(method, Batch(images(dtype=torch.float32)))
    assert float(found["network.model.conv_in.weight"].abs().max()) > 0 and not any(p.grad is not None for p in vae.parameters())


def test_a_run_with_critics_is_exported_without_them(tiny, tmp_path):
    """Any of its checkpoints, as a pipeline; and as an adapter, where it trained one."""
    run = train(made(space="alex,squeeze", sg_steps=1, sat_steps=1), settings(tiny, tmp_path / "run", steps=2), quiet=True).folder
    few = settings(tiny, tmp_path / "few", network=None, init=str(run), peft="lora", steps=2)
    train(made(sg_steps=1, sat_steps=1), few, quiet=True)
    for name, made_by_run, flags in (("run", "model", ()), ("few", "adapter", ("--adapter",))):
        assert main(["export", str(tmp_path / name), str(tmp_path / f"{name}-out"), *flags]) == 0
        one, other = (load_file(next((tmp_path / n).rglob("*.safetensors"))) for n in (f"{name}/{made_by_run}", f"{name}-out"))
        assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_several_spaces_have_their_weights_and_shares(tiny, tmp_path):
    recipe = made(space="alex:2,squeeze", sg_steps=3, sat_steps=3, structure_share=0.3, structure_weight=0.5)
    method = recipe.build(Context(3, 8, network=tiny.network))
    terms = {term.name: term for term in method.terms[1:]}
    assert {name: (term.scale, term.share) for name, term in terms.items()} == {
        "structure/alex": (1.0, pytest.approx(0.2)),
        "structure/squeeze": (0.5, pytest.approx(0.1)),
    }
    assert list(method.players) == ["model", *terms]
    given = settings(tiny, tmp_path / "run", steps=6, batch=8)
    found = lines(train(recipe, given, quiet=True).folder)
    assert {"share/structure/alex", "weight/structure/squeeze", "critic/structure/squeeze"} <= found[-1].keys()
    assert found[-1]["weight/structure/alex"] != found[0]["weight/structure/alex"]


def test_a_run_in_bf16_is_finite(tiny, tmp_path):
    given = settings(tiny, tmp_path / "run", steps=4, mixed_precision="bf16", micro_batch=2)
    for line in lines(train(made(sg_steps=2, sat_steps=2), given, quiet=True).folder):
        assert all(math.isfinite(v) for v in line.values()) and line["structure"] > 0


def test_structure_is_brought_to_the_data(tiny, tmp_path):
    given = settings(tiny, tmp_path / "run", steps=40, batch=16, lr=3e-3, log_every=10, checkpoint_every=40)
    found = lines(train(made(sat_steps=0, structure_weight=10.0, predict="x0", weight="clean"), given, quiet=True).folder)
    assert found[-1]["structure/correlation"] > found[0]["structure/correlation"] + 0.05, found


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_other_defaults_and_settle(name):
    recipe, given = read(TrainSadm, ["--preset", name, "--seed", "3"])
    for key, value in PRESETS[name].items():
        assert getattr(recipe if hasattr(recipe, key) else given, key) == value, key
    recipe, settled = recipe.settled(given)
    assert recipe.rounds * (recipe.sg_steps + recipe.sat_steps) == settled.steps
    if name.startswith("finetune"):
        assert (recipe.sg_steps, recipe.sat_steps, settled.steps) == (24_000, 4_000, 28_000)
