"""The record that every objective reads: features once per space, the real side without gradient, rows chosen before features."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from percepta.estimate import Batch, Denoise, Estimate, take
from percepta.formulation import Denoiser, Formulation, Noised
from percepta.networks import adapt
from percepta.path import Cosine
from percepta.rng import rng_for
from percepta.spaces import Pixels, Space


class Counting(Space):
    """The samples times a factor; remembers what it was called on."""

    def __init__(self, factor: float = 2.0, on: Space | None = None) -> None:
        super().__init__(on)
        self.factor, self.calls = factor, []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.calls.append((len(x), torch.is_grad_enabled() and x.requires_grad))
        return (x * self.factor,)


def estimate(rows=4, paired=True, **more):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(rows, 3, 8, 8, generator=generator)
    return Estimate(torch.randn(rows, 3, 8, 8, generator=generator).requires_grad_(), x0, paired, **more)


def noised(rows=4):
    t = torch.linspace(0.1, 0.9, rows, dtype=torch.float64)
    x = torch.randn(rows, 3, 8, 8)
    return {"noised": Noised(x, x, t, x), "path": Cosine()}


def test_features_are_computed_once_per_space_and_side_and_real_ones_have_no_gradient():
    est, space = estimate(), Counting()
    for _ in range(3):
        real, fake = est.features(space)
    assert space.calls == [(4, False), (4, True)]
    assert torch.equal(real[0], est.x0 * 2)
    # even of references that somebody follows: an encoder that trains, for one
    assert not Estimate(est.x0_hat, est.x0.clone().requires_grad_()).features(space)[0][0].requires_grad
    assert torch.equal(fake[0], est.x0_hat * 2)
    fake[0].sum().backward()
    assert torch.equal(est.x0_hat.grad, torch.full_like(est.x0, 2.0))


def test_a_space_below_two_others_is_computed_once():
    base = Counting()
    left, right = Counting(3.0, base), Counting(5.0, base)
    est = estimate()
    assert torch.allclose(est.features(left)[0][0], est.x0 * 6)
    assert torch.allclose(est.features(right)[1][0], est.x0_hat * 10)
    assert len(base.calls) == 2
    assert len(left.calls) == len(right.calls) == 2


def test_two_estimates_share_nothing():
    space = Counting()
    estimate().features(space)
    estimate().features(space)
    assert len(space.calls) == 4


def test_detach_keeps_features_and_cuts_their_graph():
    est, space, other = estimate(), Counting(), Counting()
    est.features(space)
    cut = est.detach()
    real, fake = cut.features(space)
    assert len(space.calls) == 2, "nothing is computed again"
    assert not fake[0].requires_grad
    assert not cut.x0_hat.requires_grad
    cut.features(other)
    real, fake = est.features(other)
    assert other.calls == [(4, False), (4, False), (4, True)], "the real side is shared, the generated one needs its graph"
    assert fake[0].requires_grad


class Doubling:
    """An encoder that counts."""

    def __init__(self):
        self.calls = 0

    def encode(self, x):
        self.calls += 1
        return x * 2, torch.zeros_like(x)


def test_latents_are_made_once_for_a_critic_and_for_the_maker_whoever_asks_first():
    coder, tapped = Doubling(), torch.randn(4, 3, 8, 8, requires_grad=True)
    for first in ("critic", "maker"):
        coder.calls, est = 0, estimate(taps={"fake": tapped})
        cut = est.detach().detach()
        sides = [cut, est] if first == "critic" else [est, cut]
        for name in ("x0", "x0_hat", "fake"):
            with torch.set_grad_enabled(first == "maker"):
                sides[0].encoded(coder, name)
            of_maker, of_critic = est.encoded(coder, name), cut.encoded(coder, name)
            assert torch.equal(of_maker, of_critic) and not of_critic.requires_grad
            assert of_maker.requires_grad == (name != "x0"), (first, name)
        assert coder.calls == 3
    assert torch.autograd.grad(est.encoded(coder, "fake").sum(), tapped)[0].eq(2).all()
    assert torch.equal(est.encoded(Doubling(), "fake"), 2 * tapped) and coder.calls == 3, "another encoder has its own"
    chosen = est.select(torch.tensor([True, False, True, False]))
    assert torch.equal(chosen.encoded(coder, "fake"), 2 * tapped[[0, 2]]), "rows that are chosen are encoded anew"


def test_select_takes_the_rows_of_everything():
    given = noised()
    est = estimate(cond=torch.arange(4), taps={"output": torch.arange(4.0)}, **given)
    keep = torch.tensor([True, False, False, True])
    chosen = est.select(keep)
    assert len(chosen) == 2
    for whole, part in ((est.x0_hat, chosen.x0_hat), (est.x0, chosen.x0), (est.cond, chosen.cond), (est.t, chosen.t)):
        assert torch.equal(part, whole[[0, 3]])
    assert torch.equal(chosen.level, est.level[[0, 3]])
    assert torch.equal(chosen.taps["output"], torch.tensor([0.0, 3.0]))
    assert torch.equal(chosen.noised.eps, est.noised.eps[[0, 3]])
    chosen.x0_hat.sum().backward()
    assert est.x0_hat.grad.flatten(1).sum(1).tolist() == [192.0, 0.0, 0.0, 192.0]


def test_select_leaves_an_unpaired_reference_whole():
    est = estimate(paired=False)
    chosen = est.select(torch.tensor([True, False, False, False]))
    assert len(chosen.x0_hat) == 1
    assert torch.equal(chosen.x0, est.x0)


def test_select_of_a_mapping_condition():
    cond = {"a": torch.arange(4), "b": torch.arange(8).reshape(4, 2)}
    chosen = estimate(cond=cond).select(torch.tensor([False, True, False, True]))
    assert torch.equal(chosen.cond["b"], torch.tensor([[2, 3], [6, 7]]))
    assert take(None, [0]) is None


def test_features_after_select_are_of_the_kept_rows_only():
    est, space = estimate(), Counting()
    est.select(torch.tensor([True, False, True, False])).features(space)
    assert [rows for rows, _ in space.calls] == [2, 2]


@pytest.mark.parametrize("name", ["t", "level", "snr", "known_path"])
def test_an_estimate_without_a_noise_level_says_what_to_do(name):
    with pytest.raises(ValueError, match="no noise level.*estimator Denoise"):
        getattr(estimate(), name)


def test_level_and_snr_are_those_of_the_path():
    est = estimate(**noised())
    assert torch.equal(est.level, Cosine().level(est.t))
    assert torch.allclose(est.snr, est.level**-2)


def test_pixels_are_the_samples_themselves():
    est = estimate()
    real, fake = est.features(Pixels())
    assert real[0] is est.x0
    assert fake[0] is est.x0_hat


def test_a_batch_selects_and_moves_all_its_parts():
    batch = Batch(torch.randn(3, 3, 8, 8), {"a": torch.arange(3)}, torch.randn(3, 3, 8, 8))
    part = batch.select(slice(1, 3))
    assert len(part) == 2
    assert torch.equal(part.source, batch.source[1:])
    assert torch.equal(part.cond["a"], torch.tensor([1, 2]))
    moved = batch.to("cpu", memory_format=torch.channels_last)
    assert moved.x0.is_contiguous(memory_format=torch.channels_last)
    assert moved.source.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved.x0, batch.x0)
    assert torch.equal(moved.cond["a"], batch.cond["a"])


@pytest.mark.parametrize("what", [lambda: estimate(**noised()).select(torch.arange(4) > 0),
                                  lambda: Batch(torch.randn(3, 3, 8, 8)).to(torch.device("cpu"))])  # fmt: skip
def test_a_copy_to_the_cpu_is_waited_for(what, monkeypatch):
    """From a GPU it would be read before it has come."""
    calls, real = [], torch.Tensor.to

    def to(x, device, *args, **options):
        calls.append((torch.device(device).type, options.get("non_blocking", False)))
        return real(x, device, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    what()
    assert calls and set(calls) == {("cpu", False)}


@pytest.fixture(scope="module")
def denoiser():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, num_class_embeds=5,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        return Denoiser(adapt(model, num_classes=4), Formulation(Cosine(), "noise"))


def test_denoise_gives_a_paired_estimate_with_its_level_and_output(denoiser):
    batch = Batch(torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2]))
    est = Denoise(denoiser)(batch, rng_for(0, 0, 3))
    assert est.paired
    assert est.x0 is batch.x0
    assert torch.equal(est.cond, batch.cond)
    again = denoiser(est.noised.x_t, est.t, batch.cond)
    assert torch.equal(again, est.x0_hat)
    assert est.taps["output"].shape == batch.x0.shape


def test_denoise_drops_the_condition_of_single_samples_by_their_own_numbers(denoiser):
    batch = Batch(torch.randn(64, 3, 8, 8), torch.zeros(64, dtype=torch.int64))
    est = Denoise(denoiser, 0.5)(batch, rng_for(0, 0, 64))
    dropped = est.cond == 4  # the null label
    assert 16 < int(dropped.sum()) < 48
    part = Denoise(denoiser, 0.5)(batch.select(slice(10, 20)), rng_for(0, 0, 64).select(slice(10, 20)))
    assert torch.equal(part.cond == 4, dropped[10:20])
    assert int((Denoise(denoiser, 0.0)(batch, rng_for(0, 0, 64)).cond == 4).sum()) == 0


@pytest.fixture(scope="module")
def dropping():
    """With dropout, and in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet2DModel(
            sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, dropout=0.3,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
        return Denoiser(adapt(model), Formulation(Cosine(), "noise")).double().train()


def gradient(denoiser, estimate, rows=7, side=8):
    """Of a loss that couples all rows; with the bytes of memory that the graph holds at the end of the forward pass."""
    x0 = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(1)).to(next(denoiser.parameters()).dtype)
    held: dict[int, int] = {}

    def pack(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    denoiser.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        est = estimate(Batch(x0), rng_for(0, 0, rows))
        loss = est.x0_hat.mean(0).square().sum()
    loss.backward()
    return est, [p.grad.clone() for p in denoiser.parameters() if p.grad is not None], sum(held.values())


@pytest.mark.parametrize("micro", [1, 3, 7, 20])
def test_rows_may_go_through_the_network_some_at_a_time(dropping, micro):
    plain = copy.deepcopy(dropping).eval()
    whole, expected, _ = gradient(plain, Denoise(plain))
    parts, found, _ = gradient(plain, Denoise(plain, micro=micro))
    torch.testing.assert_close(parts.x0_hat, whole.x0_hat, rtol=1e-10, atol=1e-12)
    assert parts.taps.keys() == whole.taps.keys() and torch.equal(parts.t, whole.t)
    torch.testing.assert_close(parts.taps["output"], whole.taps["output"], rtol=1e-10, atol=1e-12)
    assert max(float(g.abs().max()) for g in expected) > 0
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_it_then_takes_the_memory_of_one_part(dropping):
    _, _, whole = gradient(dropping, Denoise(dropping), 16)
    _, _, parts = gradient(dropping, Denoise(dropping, micro=2), 16)
    weights = sum(p.numel() * 8 for p in dropping.parameters())
    assert parts - weights < (whole - weights) / 8, (whole, parts, weights)


def test_dropout_is_the_same_when_a_part_is_computed_again(dropping):
    """The gradient is that of the value: finite differences along it, with the same masks."""
    estimate = Denoise(dropping, micro=3)
    est, found, _ = gradient(dropping, estimate)
    again, same, _ = gradient(dropping, estimate)
    assert torch.equal(est.x0_hat, again.x0_hat) and all(torch.equal(a, b) for a, b in zip(found, same, strict=True))
    params, step = list(dropping.parameters()), 1e-7
    assert len(params) == len(found)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(params, found, strict=True):
                p += sign * step * g
        moved, _, _ = gradient(dropping, estimate)
        values.append(float(moved.x0_hat.detach().mean(0).square().sum()))
        with torch.no_grad():
            for p, g in zip(params, found, strict=True):
                p -= sign * step * g
    squared = sum(float(g.square().sum()) for g in found)
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(squared, rel=1e-4)


def test_conditions_are_dropped_alike_some_rows_at_a_time(denoiser):
    batch = Batch(torch.randn(8, 3, 8, 8), torch.tensor([0, 1, 2, 3] * 2))
    whole, parts = (Denoise(denoiser, 0.5, micro)(batch, rng_for(0, 0, 8)) for micro in (None, 3))
    assert torch.equal(whole.cond, parts.cond) and 0 < int((whole.cond == 4).sum()) < 8
    torch.testing.assert_close(parts.x0_hat, whole.x0_hat, rtol=1e-4, atol=1e-4)


def test_one_time_is_that_of_the_step_and_of_its_stream(denoiser):
    batch = Batch(torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    estimate = Denoise(denoiser, one_time=True)
    times = [float(estimate(batch, rng_for(0, 4 * k, 4, k)).t[0]) for k in range(30)]
    assert len(set(times)) > 25 and 0.3 < sum(times) / 30 < 0.7
    one = estimate(batch, rng_for(0, 0, 4, 3))
    assert len(set(one.t.tolist())) == 1 and one.t.tolist() == estimate(batch, rng_for(0, 400, 4, 3)).t.tolist()
    assert float(estimate(batch, rng_for(0, 0, 4, 3, "train-1")).t[0]) != float(one.t[0])
    assert not torch.equal(one.noised.eps[0], one.noised.eps[1])  # noise is each row's own
