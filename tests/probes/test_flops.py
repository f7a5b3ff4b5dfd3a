"""The count of a step: shares of the samples by closed forms, decoders by their layers, the plain step by what the paper printed."""

import pytest
import torch
from torch import nn

from percepta.formulation import EDM
from percepta.networks import build_autoencoder
from percepta.probes import SCHEDULES, VAES, StepCost, share_below, step_cost
from percepta.probes.flops import _autoencoder, _counted_back, _decodings
from percepta.spaces.decoder import Decoder

NETWORK = "mmdit-pocket"


@pytest.mark.parametrize(
    ("schedule", "tau", "share"),
    [
        ("linear", 1, 0.259), ("linear", 3, 0.475), ("linear", 6, 0.596), ("scaled-linear", 3, 0.674), ("cosine", 3, 0.793),
        ("cosine", 6, 0.894), ("flow-uniform", 3, 0.75), ("flow-uniform", 1, 0.5), ("flow", 1, 0.5), ("flow", 3, 0.8640),
    ],
)  # fmt: skip
def test_the_share_below_a_threshold(schedule, tau, share):
    assert share_below(SCHEDULES[schedule], tau) == pytest.approx(share, abs=1e-3)


def test_the_share_of_edm_and_a_threshold_of_nothing():
    assert share_below(EDM, 0.301194) == pytest.approx(0.5, abs=1e-5)  # exp(-1.2), the median
    with pytest.raises(ValueError, match="tau"):
        share_below(EDM, 0)


def test_the_sum_is_that_of_its_parts():
    cost = StepCost(encode=2.0, network=10.0, target=3.0, predicted=7.0, share=0.5)
    assert (cost.plain, cost.lpl) == (12, 17) and cost.ratio == pytest.approx(17 / 12)
    cached = StepCost(2.0, 10.0, 3.0, 7.0, 0.5, cached=True)
    assert (cached.plain, cached.lpl) == (10, 15)


def test_a_decoder_is_counted_by_its_layers():
    """Against the sum over the convolutions that run: the target once, the prediction twice, its weights being frozen."""
    vae = build_autoencoder(overrides={"mid_block_add_attention": False})
    counted = []
    for layer in vae.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda m, given, out, layer=layer: counted.append(2 * out[0].numel() * layer.weight[0].numel())
            )
    target, predicted = _decodings(Decoder(vae), 8)
    assert target == pytest.approx(sum(counted) / 2 / 1e9, rel=1e-6)  # both decodings ran
    assert predicted == pytest.approx(2 * target, rel=1e-6)
    assert all(p.grad is None for p in vae.parameters())


def test_less_is_counted_where_less_is_decoded():
    with torch.device("meta"):
        vae, wide = _autoencoder("sdxl"), _autoencoder("asymmetric-x-1-5")
        targets = [_decodings(Decoder(vae, range(k + 1)), 8)[0] for k in range(5)]
        alone, window = _decodings(Decoder(vae, (2,)), 8)[0], _decodings(Decoder(vae), 4)[0]
        mid = _decodings(Decoder(wide, (0,)), 8)[0]
    assert targets == sorted(targets) and len(set(targets)) == 5
    assert alone == targets[2], "what lies below is computed anyway"
    assert window == pytest.approx(targets[-1] / 4, rel=0.01)
    assert mid == pytest.approx(1.5**2 * targets[0], rel=0.05)
    assert set(VAES) == {"sdxl", "asymmetric-x-1-5"}


def test_attention_computes_its_scores_again():
    """Forward two products, backward four, and the first one again: 3.5 times the forward."""
    q = torch.empty(1, 2, 16, 8, device="meta", requires_grad=True)
    forward = 2 * (2 * 2 * 16 * 16 * 8) / 1e9
    found = _counted_back(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q).sum())
    assert found == pytest.approx(3.5 * forward, rel=1e-6)


def test_a_folder_is_an_autoencoder_by_its_configuration(tmp_path):
    build_autoencoder().save_pretrained(tmp_path / "ae")
    cost = step_cost(NETWORK, str(tmp_path / "ae"), 32, 1.0)
    assert 0 < cost.target < cost.predicted and cost.encode > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "mmdit-xl"}, "mmdit-xl-2"), ({"vae": "sdx"}, "sdxl"), ({"size": 60}, "multiple of 8"), ({"share": 1.5}, "share"),
        ({"layers": (7,)}, "layers 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        step_cost(**({"network": NETWORK, "vae": "sdxl", "size": 64, "share": 1.0} | change))


def test_nothing_is_allocated_and_no_random_number_is_drawn():
    before = torch.get_rng_state()
    step_cost(NETWORK, "sdxl", 64, 1.0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("size", "batch", "printed"), [(256, 64, 63.389), pytest.param(512, 16, 69.342, marks=pytest.mark.slow)])
def test_the_plain_steps_of_table_8(size, batch, printed):
    cost = step_cost("mmdit-xl-2", "sdxl", size, 0.0)
    assert batch * cost.plain / 1e3 == pytest.approx(printed, rel=3e-3)
