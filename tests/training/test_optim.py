"""The optimizer's state comes back by name, to the bit; learning rates are diffusers'; norms see every infinity."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from percepta.training.checkpoint import load, save
from percepta.training.optim import (
    Schedule,
    clip_gradients,
    load_optimizer_tensors,
    make_optimizer,
    nonfinite,
    optimizer_tensors,
    set_lr,
)


class Net(nn.Module):
    """A convolution whose memory layout can change, a linear layer, and a weight that no gradient reaches."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x):
        return self.linear(self.conv(x).mean((2, 3)))


def train(net, optimizer, first, last):
    for k in range(first, last):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        set_lr(optimizer, 1e-2 / (k + 1))
        optimizer.step()


def fresh(layout):
    torch.manual_seed(0)
    return Net().to(memory_format=layout)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_is_the_plain_update(name):
    ours, theirs = fresh(torch.contiguous_format), fresh(torch.contiguous_format)
    optimizer = make_optimizer(ours, name, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-6)
    assert optimizer.param_groups[0]["fused"]
    train(ours, optimizer, 0, 5)
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    train(theirs, plain(theirs.parameters(), betas=(0.8, 0.9), weight_decay=0.1, eps=1e-6, foreach=False), 0, 5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.equal(ours.conv.weight, fresh(torch.contiguous_format).conv.weight)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_four_steps_are_two_and_two_to_the_bit_whatever_the_order_of_parameters(tmp_path, layout, name):
    straight = fresh(layout)
    whole = make_optimizer(straight, name, weight_decay=0.01)
    train(straight, whole, 0, 4)

    net = fresh(layout)
    optimizer = make_optimizer(net, name, weight_decay=0.01)
    train(net, optimizer, 0, 2)
    found = load(save(tmp_path, 2, {"model": net.state_dict(), "optimizer": optimizer_tensors(optimizer)}, {}))
    again = fresh(layout)
    again.load_state_dict(found.tensors["model"])
    resumed = make_optimizer(reversed(list(again.named_parameters())), name, weight_decay=0.01)
    load_optimizer_tensors(resumed, found.tensors["optimizer"])
    train(again, resumed, 2, 4)
    for (k, a), b in zip(straight.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), k
    a, b = optimizer_tensors(whole), optimizer_tensors(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    assert a["conv.weight/step"].item() == 4
    assert a["unused/step"].item() == 0
    assert "unused/exp_avg" not in a
    assert not any(k.startswith("frozen") for k in a)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_four_steps_are_two_and_two_on_a_gpu():
    def pair():
        net = fresh(torch.channels_last).cuda()
        return net, make_optimizer(net)

    def train_there(net, optimizer, first, last):
        for k in range(first, last):
            for j, p in enumerate(p for p in net.parameters() if p.requires_grad):
                noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * k + j))
                p.grad = torch.empty_like(p).copy_(noise)
            optimizer.step()

    (a, whole), (b, half), (c, resumed) = pair(), pair(), pair()
    train_there(a, whole, 0, 4)
    train_there(b, half, 0, 2)
    c.load_state_dict(b.state_dict())
    load_optimizer_tensors(resumed, {k: x.cpu() for k, x in optimizer_tensors(half).items()})
    train_there(c, resumed, 2, 4)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_an_optimizer_that_never_moved_round_trips():
    net = fresh(torch.contiguous_format)
    optimizer = make_optimizer(net)
    tensors = optimizer_tensors(optimizer)
    train(net, optimizer, 0, 1)
    load_optimizer_tensors(optimizer, tensors)
    assert not optimizer.state


def test_state_of_other_parameters_is_refused_and_nothing_changes():
    net = fresh(torch.contiguous_format)
    optimizer = make_optimizer(net)
    train(net, optimizer, 0, 1)
    good = {k: x.clone() for k, x in optimizer_tensors(optimizer).items()}
    without = {k: x for k, x in good.items() if k != "conv.weight/exp_avg"}
    for bad, match in (
        (without, r"1 missing \['conv.weight/exp_avg'\]"),
        (good | {"other/step": torch.ones(())}, r"1 unknown \['other/step'\]"),
        ({k.replace("conv", "conv1"): x for k, x in good.items()}, r"2 missing .* 6 unknown"),
        (good | {"linear.bias/exp_avg": torch.zeros(3)}, r"\['linear.bias/exp_avg'\] have other shapes"),
    ):
        with pytest.raises(ValueError, match=match):
            load_optimizer_tensors(optimizer, bad)
    now = optimizer_tensors(optimizer)
    assert all(torch.equal(now[k], x) for k, x in good.items())
    with pytest.raises(ValueError, match="have no names"):
        optimizer_tensors(torch.optim.AdamW(net.parameters()))


def test_wrong_optimizers_are_refused():
    net = fresh(torch.contiguous_format)
    with pytest.raises(ValueError, match=r"unknown optimizer 'lion'; known: adamw, adam"):
        make_optimizer(net, "lion")
    with pytest.raises(ValueError, match="trainable parameters"):
        make_optimizer([("frozen", net.frozen)])
    with pytest.raises(ValueError, match="got 2 with 1 names"):
        make_optimizer([("w", net.conv.weight), ("w", net.conv.bias)])


# ---- learning rate


@pytest.mark.parametrize(("kind", "theirs"), [("constant", "constant_with_warmup"), ("cosine", "cosine"), ("linear", "linear")])
def test_schedules_are_those_of_diffusers(kind, theirs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=7, num_training_steps=40)
    ours = Schedule(0.3, kind, warmup=7, total=40)
    for step in range(45):
        if kind != "cosine" or step <= 40:  # diffusers' cosine rises again after its end
            assert ours.lr_at(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        scheduler.step()
    assert kind == "constant" or ours.lr_at(10**6) == 0


def test_edm_rises_over_its_images_and_edm2_falls_as_one_over_the_square_root():
    edm = Schedule(1e-3, "edm", warmup=10e6)
    assert [edm.lr_at(n) for n in (0, 5e6, 10e6, 1e9)] == [0, 5e-4, 1e-3, 1e-3]
    edm2 = Schedule(1e-2, "edm2", warmup=100, reference=1000)
    assert [edm2.lr_at(n) for n in (50, 100, 1000)] == [5e-3, 1e-2, 1e-2]
    assert edm2.lr_at(4000) == pytest.approx(1e-2 / 2)
    assert edm2.lr_at(100_000) == pytest.approx(1e-2 / 10)


def test_a_schedule_ends_at_its_final_share():
    for kind in ("cosine", "linear"):
        schedule = Schedule(2.0, kind, warmup=10, total=110, final=0.25)
        assert [schedule.lr_at(n) for n in (10, 110, 500)] == pytest.approx([2.0, 0.5, 0.5])
        assert schedule.lr_at(60) == pytest.approx(2.0 * (1 + 0.25) / 2)


def test_late_linear_stays_for_the_first_half_and_falls_in_the_second():
    """U-GAT-IT takes lr/(N/2) off in each step after the first half: 2/N of it is left for the last of N steps."""
    schedule = Schedule(1e-4, "late-linear", total=100)
    assert [schedule.lr_at(n) for n in (0, 1, 49, 50)] == [1e-4] * 4
    assert [schedule.lr_at(n) for n in (51, 75, 99, 100, 500)] == pytest.approx([0.98e-4, 0.5e-4, 0.02e-4, 0, 0])
    shifted = Schedule(2.0, "late-linear", warmup=10, total=110, final=0.25)
    assert [shifted.lr_at(n) for n in (5, 10, 60, 85, 110, 500)] == pytest.approx([1, 2, 2, 1.25, 0.5, 0.5])


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "step"},
        {"lr": 0.0},
        {"warmup": -1},
        {"kind": "cosine"},
        {"kind": "linear", "warmup": 5, "total": 5},
        {"kind": "late-linear"},
        {"kind": "edm"},
        {"final": 2.0},
        {"reference": 0},
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(bad):
    with pytest.raises(ValueError):
        Schedule(**bad)


# ---- gradients


def with_grads(*grads):
    out = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(out, grads, strict=True):
        p.grad = g.clone()
    return out


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torch_s(max_norm):
    grads = [torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    ours, theirs = with_grads(*grads), with_grads(*grads)
    norm = clip_gradients([*ours, nn.Parameter(torch.zeros(2))], max_norm)
    assert torch.allclose(norm, torch.nn.utils.clip_grad_norm_(theirs, max_norm))
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))
    assert norm.dtype == torch.float32
    assert norm.shape == ()
    assert torch.allclose(clip_gradients(ours, None), norm.clamp(max=max_norm), rtol=1e-5)


def test_a_norm_is_wide_enough_for_half_precision():
    p = with_grads(torch.full((100,), 6e4, dtype=torch.float16), torch.ones(3))
    assert clip_gradients(p, 1.0).item() == pytest.approx(math.sqrt(100 * 6e4**2 + 3), rel=1e-3)
    assert clip_gradients(with_grads(torch.full((2,), 1e30, dtype=torch.float64))).item() == pytest.approx(2**0.5 * 1e30)
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0).item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_one_number_that_is_not_finite_is_seen_named_and_spoils_no_other(bad, dtype):
    spoilt = torch.ones(1000, dtype=dtype)
    spoilt[777] = bad
    good, p = with_grads(torch.full((5,), 9.0), spoilt)
    assert not clip_gradients([good, p], 1.0).isfinite()
    assert torch.equal(good.grad, torch.full((5,), 9.0))
    assert nonfinite([("good", good), ("p", p), ("none", nn.Parameter(torch.zeros(1)))]) == ["p"]


def test_a_clipping_norm_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive norm, got 0"):
        clip_gradients(with_grads(torch.ones(1)), 0.0)
