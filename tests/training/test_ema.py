"""Averages follow their closed forms, survive a checkpoint to the bit, and any power profile comes back from snapshots."""

import math
from contextlib import suppress

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import nn

from percepta.training.checkpoint import CheckpointError, load, save
from percepta.training.ema import POWER, Classic, Ema, HalfLife, Power, gamma_of, reconstruct, sigma_rel_of, solve_profile

BATCH = 50


class Vector(nn.Module):
    """One parameter."""

    def __init__(self, num=1, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(num, dtype=dtype))

    def put(self, value):
        with torch.no_grad():
            self.w.copy_(torch.as_tensor(value))


class Assorted(nn.Module):
    """A frozen weight, a tied one, a buffer, bfloat16 beside float32."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.tied = self.a
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.narrow = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        self.norm = nn.BatchNorm1d(3)


def stir(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in model.state_dict().values():
            if x.is_floating_point():
                x.add_(torch.randn(x.shape, generator=g).to(x.dtype))


# ---- closed forms


@pytest.mark.parametrize(("warmup", "power"), [("ramp", None), ("power", 2 / 3)])
def test_classic_is_diffusers(warmup, power):
    torch.manual_seed(0)
    net = UNet2DModel(
        8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    options = {} if power is None else {"use_ema_warmup": True, "power": power}
    theirs, ours = EMAModel(net.parameters(), decay=0.9, **options), Ema(net, Classic(0.9, warmup))
    for k in range(1, 25):
        stir(net, k)
        theirs.step(net.parameters())
        ours.update(BATCH * k)
    pairs = list(zip(theirs.shadow_params, ours.averaged().values(), strict=True))
    assert len(pairs) > 30
    for a, b in pairs:
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_classic_without_warm_up_is_a_geometric_series_from_the_first_weights():
    model = Vector()
    model.put([1.0])
    ema = Ema(model, Classic(0.9, "none"))
    model.put([0.0])
    for k in range(1, 8):
        ema.update(k)
        assert ema.averaged()["w"].item() == pytest.approx(0.9**k, rel=1e-12)


def test_half_of_the_weight_lies_on_one_half_life():
    model = Vector()
    ema = Ema(model, HalfLife(BATCH * 10, rampup=None))
    model.put([1.0])
    for k in range(1, 11):
        ema.update(BATCH * k)
    assert ema.averaged()["w"].item() == pytest.approx(0.5, rel=1e-12)


def test_half_life_ramps_up_with_the_images_seen_before():
    profile = HalfLife(1000, rampup=0.05)
    assert profile.beta(0, BATCH, BATCH) == 0.0  # the first update copies the weights
    assert profile.beta(1, 2 * BATCH, BATCH) == 0.5 ** (BATCH / (0.05 * BATCH))
    assert profile.beta(9999, 10**6, BATCH) == 0.5 ** (BATCH / 1000)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.2, 0.28])
def test_gamma_and_sigma_rel_are_inverse(sigma_rel):
    assert sigma_rel_of(gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


def test_gamma_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)  # Karras et al. 2024: "gamma = 16.97 and 6.94"
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_power_average_weighs_each_step_with_the_integral_of_its_profile(sigma_rel):
    num = 400
    model = Vector(num)
    ema = Ema(model, Power(sigma_rel))
    for k in range(num):
        model.put(torch.eye(num, dtype=torch.float64)[k])  # the average of unit vectors is the vector of weights
        ema.update(BATCH * (k + 1))
    weights = ema.averaged()["w"]
    tau = torch.arange(num + 1, dtype=torch.float64) / num
    exact = (tau ** (gamma_of(sigma_rel) + 1)).diff()
    assert torch.allclose(weights, exact, rtol=1e-9, atol=1e-15)
    middle = (tau[1:] + tau[:-1]) / 2
    mean = (weights * middle).sum()
    assert ((weights * (middle - mean) ** 2).sum()).sqrt().item() == pytest.approx(sigma_rel, rel=2e-3)


# ---- reconstruction


def test_profiles_are_rebuilt_from_the_tracked_ones():
    """The error of the profile itself falls fast with the number of snapshots; a tracked profile is rebuilt exactly."""
    tau = (torch.arange(8000, dtype=torch.float64) + 0.5) / 8000

    def profile(t, gamma):
        return (gamma + 1) * torch.where(tau < t, tau, 0) ** gamma / t ** (gamma + 1)

    def error(num, sigma_rel):
        sources = [((k + 1) / num, gamma_of(p.sigma_rel)) for k in range(num) for p in POWER.values()]
        weights = solve_profile(sources, (1.0, gamma_of(sigma_rel)))
        assert math.fsum(weights) == pytest.approx(1.0, abs=1e-9)
        wanted = profile(1.0, gamma_of(sigma_rel))
        made = sum(c * profile(*s) for c, s in zip(weights, sources, strict=True))
        return ((made - wanted).square().mean() / wanted.square().mean()).sqrt().item()

    assert error(8, 0.05) < 1e-6
    assert error(8, 0.1) < 1e-6
    for sigma_rel in (0.07, 0.15):
        errors = [error(num, sigma_rel) for num in (4, 16, 64)]
        assert errors[2] < 1e-3
        assert errors[0] > 4 * errors[1] > 16 * errors[2]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A random walk of weights with 32 snapshots, and the averages that a run would have tracked directly."""
    folders = {dtype: tmp_path_factory.mktemp("snapshots") for dtype in (torch.float16, torch.float32)}
    model, wanted = Vector(300, torch.float32), (0.04, 0.07, 0.15, 0.2)
    ema, direct = Ema(model, POWER), Ema(model, {str(s): Power(s) for s in wanted})
    g = torch.Generator().manual_seed(0)
    spread, halfway = {}, {}
    for k in range(1, 641):
        model.put(model.w + 0.05 * torch.randn(300, generator=g))
        ema.update(k * BATCH)
        direct.update(k * BATCH)
        if k % 20 == 0:
            for dtype, folder in folders.items():
                ema.snapshot(folder, dtype)
        if k == 320:
            halfway = {s: direct.averaged(str(s))["w"].clone() for s in wanted}
    spread = (direct.averaged("0.2")["w"] - direct.averaged("0.04")["w"]).norm().item()
    return folders, {s: direct.averaged(str(s))["w"].clone() for s in wanted}, halfway, spread, ema


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_any_length_is_rebuilt_after_training(walk, dtype):
    folders, direct, halfway, spread, ema = walk
    for s, x in direct.items():
        assert (reconstruct(folders[dtype], s)["w"] - x).norm() < 0.01 * spread, s
    for s, x in halfway.items():
        assert (reconstruct(folders[dtype], s, images=320 * BATCH)["w"] - x).norm() < 0.02 * spread, s
    tracked = reconstruct(folders[dtype], 0.05)["w"]
    assert tracked.dtype == torch.float32
    assert (tracked - ema.averaged("0.050")["w"]).abs().max() < (2e-3 if dtype == torch.float16 else 1e-5)


def test_a_damaged_snapshot_and_missing_ones_are_named(walk, tmp_path):
    model = Vector(3, torch.float32)
    ema = Ema(model, POWER)
    with pytest.raises(CheckpointError, match="no snapshots"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(ValueError, match="after an update"):
        ema.snapshot(tmp_path)
    for k in (1, 2):
        ema.update(k * BATCH)
        place = ema.snapshot(tmp_path)
    with pytest.raises(ValueError, match="no snapshot at or before"):
        reconstruct(tmp_path, 0.1, images=10)
    file = place / "ema-0.100.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"checkpoint-100: ema-0.100.safetensors is damaged"):
        reconstruct(tmp_path, 0.1)


def test_a_snapshot_that_overflows_its_type_is_refused(tmp_path):
    model = Vector(1, torch.float32)
    ema = Ema(model, POWER)
    model.put([1e6])
    ema.update(1)
    with pytest.raises(ValueError, match=r"w of 'ema-0.050' does not fit into torch.float16"):
        ema.snapshot(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- the contract


def test_averages_cover_tied_weights_and_leave_buffers_and_frozen_weights_to_the_model():
    torch.manual_seed(0)
    model, other = Assorted(), Assorted()
    ema = Ema(model, Classic(0.5, "none"))
    assert set(ema.tensors()["ema"]) == {"a.weight", "a.bias", "narrow", "norm.weight", "norm.bias"}
    before = {k: x.clone() for k, x in model.state_dict().items()}
    stir(model, 1)
    ema.update(1)
    averaged = ema.averaged()
    other.load_state_dict(averaged)  # strict: every name is there
    for name in ("a.weight", "tied.weight", "norm.bias"):
        assert torch.equal(averaged[name], before[name].lerp(model.state_dict()[name], 0.5))
    for name in ("frozen.weight", "norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(averaged[name], model.state_dict()[name])
    assert averaged["narrow"].dtype == torch.float32
    assert not any(x.requires_grad for x in averaged.values())


def test_small_changes_of_bfloat16_weights_are_not_lost():
    model = Vector(1, torch.bfloat16)
    ema = Ema(model, Classic(0.999, "none"))
    model.put([1.0])
    for k in range(1, 1001):
        ema.update(k)
    assert ema.averaged()["w"].item() == pytest.approx(1 - 0.999**1000, rel=1e-4)  # in bfloat16 it would stop far below


def test_swap_gives_the_weights_back_to_the_bit_even_after_an_error():
    torch.manual_seed(0)
    model = Assorted()
    ema = Ema(model, POWER)
    for k in (1, 2, 3):
        stir(model, k)
        ema.update(k)
    own = {k: x.clone() for k, x in model.state_dict().items()}
    for profile in (None, "0.100", "ema-0.050"):
        with suppress(KeyboardInterrupt), ema.swap(profile):
            for k, x in ema.averaged(profile).items():
                assert torch.equal(model.state_dict()[k], x.to(model.state_dict()[k].dtype)), k
            assert not torch.equal(model.a.weight, own["a.weight"])
            with pytest.raises(ValueError, match="leave `swap`"):
                ema.update(4)
            with pytest.raises(ValueError, match="does not nest"), ema.swap():
                pass
            raise KeyboardInterrupt
        assert all(torch.equal(model.state_dict()[k], x) for k, x in own.items())
    ema.update(4)
    with pytest.raises(ValueError, match=r"no average '0.3'; there are ema-0.050, ema-0.100"):
        ema.averaged("0.3")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_weight_that_is_not_finite_never_enters(bad, dtype):
    model = Vector(4, dtype)
    ema = Ema(model, POWER)
    ema.update(1)
    kept = [x["w"].clone() for x in ema.tensors().values()]
    model.put([1, 1, bad, 1])
    with pytest.raises(ValueError, match="w is not finite after 1 images"):
        ema.update(2)
    assert all(torch.equal(x["w"], y) for x, y in zip(ema.tensors().values(), kept, strict=True))
    assert (ema.updates, ema.images) == (1, 1)
    model.put([1e30, 1, 1, 1])  # its square overflows float32, and it is finite all the same
    ema.update(2)


@pytest.mark.parametrize("profiles", [Classic(0.99), HalfLife(500), POWER], ids=["classic", "edm", "power"])
def test_a_resumed_average_is_the_uninterrupted_one_to_the_bit(tmp_path, profiles):
    def run(first, last, ema, model):
        for k in range(first, last):
            stir(model, k)
            ema.update(BATCH * (k + 1))

    torch.manual_seed(0)
    straight = Assorted()
    begun = {k: x.clone() for k, x in straight.state_dict().items()}
    whole = Ema(straight, profiles)
    run(0, 6, whole, straight)

    model = Assorted()
    model.load_state_dict(begun)
    half = Ema(model, profiles)
    run(0, 3, half, model)
    path = save(tmp_path, 3, {"model": model.state_dict(), **half.tensors()}, {"ema": half.state()})
    found, again = load(path), Assorted()
    again.load_state_dict(found.tensors["model"])
    resumed = Ema(again, profiles)
    resumed.load(found.tensors, found.state["ema"])
    run(3, 6, resumed, again)
    for name, averages in whole.tensors().items():
        assert all(torch.equal(x, resumed.tensors()[name][k]) for k, x in averages.items())
    assert resumed.state() == whole.state()


def test_what_does_not_fit_is_refused():
    model = Vector(3)
    ema = Ema(model, Classic(0.9))
    with pytest.raises(ValueError, match="resume with its flags"):
        ema.load(ema.tensors(), Ema(model, Classic(0.99)).state())
    for tensors in ({}, {"ema": {}}, {"ema": {"w": torch.zeros(2)}}, {"ema": {"w": torch.zeros(3), "v": torch.zeros(1)}}):
        with pytest.raises(ValueError, match="do not fit this model"):
            ema.load(tensors, ema.state())
    ema.update(10)
    with pytest.raises(ValueError, match="10 does not follow 10"):
        ema.update(10)
    with pytest.raises(ValueError, match="nothing to average"):
        Ema(nn.BatchNorm1d(3, affine=False), Classic())
    for make in (lambda: Classic(1.0), lambda: Classic(0.9, "fast"), lambda: HalfLife(0), lambda: Power(0.3), lambda: Power(-0.1)):
        with pytest.raises(ValueError):
            make()
