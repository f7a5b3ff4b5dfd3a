import itertools

import pytest
import torch

from percepta.networks import PRESETS, build, preset_table
from percepta.networks.presets import parameters

PUBLISHED = {  # (parameters, tolerance, where the number is from)
    "unet-pocket": (1.0e6, 0.10, "about a million: our own aim"),
    "unet-cifar": (35.7e6, 0.002, "Ho et al. 2020, appendix B"),
    "iddpm-32": (52.5e6, 0.002, "Nichol and Dhariwal 2021, their model for CIFAR-10"),
    "adm-64": (120e6, 0.01, "Nichol and Dhariwal 2021, table 3"),
    "ddpmpp-32": (55.7e6, 0.001, "Karras et al. 2022, appendix F.1"),
    "ddpmpp-64": (61.8e6, 0.001, "Karras et al. 2022, table 7"),
    "ddpmpp-pocket": (1.2e6, 0.05, "about a million: our own aim"),
    "mmdit-xl-2": (1.33e9, 0.01, "28 blocks of two streams, 36 width^2 each"),
}
POCKET = ("unet-pocket", "ddpmpp-pocket", "dit-pocket", "mmdit-pocket")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    count, tolerance, source = PUBLISHED[name]
    assert parameters(name) == pytest.approx(count, rel=tolerance), source


def test_ddpmpp_is_edms_to_the_parameter():
    assert parameters("ddpmpp-32") == 55_733_891


@pytest.mark.parametrize(("size", "widths"), [(32, (3, 256, 256)), (64, (3, 128, 256, 256))])
def test_ncsnpp_is_ddpmpp_with_a_wider_time_and_a_convolution_of_the_image_at_each_level(size, widths):
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(widths))
    wider = 128 * 512 + 128 * 9  # the first layer of the time, and that of the augmentation labels
    assert parameters(f"ncsnpp-{size}") == parameters(f"ddpmpp-{size}") + convolutions + wider


def test_dit_xl_has_the_papers_675_million_beside_the_copies_of_its_embedders():
    """The library's class gives each of the 28 blocks an embedder of its own; the paper's model has one, and fixed positions."""
    with torch.device("meta"):
        model = build("dit-xl-2", size=32, channels=4, num_classes=1000, learn_sigma=True).model
    copies = sum(p.numel() for block in model.transformer_blocks[1:] for p in block.norm1.emb.parameters())
    assert (parameters("dit-xl-2") - copies) / 1e6 == pytest.approx(675.1, abs=0.5)


@pytest.mark.parametrize("name", POCKET)
@pytest.mark.parametrize(("size", "channels", "learn_sigma"), [(16, 3, False), (32, 1, False), (8, 4, True)])
def test_pocket_networks_run_at_their_sizes(name, size, channels, learn_sigma):
    network = build(name, size=size, channels=channels, num_classes=10, learn_sigma=learn_sigma)
    x = torch.randn(2, channels, size, size)
    assert network(x, torch.tensor([1.0, 500.0]), torch.tensor([0, 10])).shape == (2, channels * (1 + learn_sigma), size, size)
    assert (network.num_classes, network.sample_size, network.in_channels) == (10, size, channels)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_start_at_zero_and_learn_in_a_few_steps(name):
    """What the papers ask: the output is about 0 at first, and yet gradients reach the first layer after one step."""
    small = {
        "unet-cifar": {"block_out_channels": (32,) * 4, "layers_per_block": 1},
        "iddpm-32": {"block_out_channels": (32,) * 4, "layers_per_block": 1, "attention_head_dim": 8},
        "adm-64": {"block_out_channels": (32,) * 4, "layers_per_block": 1, "attention_head_dim": 8},
        "ddpmpp-32": {"model_channels": 32, "num_blocks": 1},
        "ddpmpp-64": {"model_channels": 32, "num_blocks": 1},
        "ncsnpp-32": {"model_channels": 32, "num_blocks": 1},
        "ncsnpp-64": {"model_channels": 32, "num_blocks": 1},
        "dit-xl-2": {"num_layers": 2, "attention_head_dim": 8},
        "mmdit-xl-2": {"num_layers": 2, "attention_head_dim": 8, "caption_projection_dim": 128},
    }
    network = build(name, channels=3, size=16, num_classes=4, overrides=small.get(name))
    x, time, labels = torch.randn(4, 3, 16, 16), torch.tensor([10.0, 300.0, 600.0, 900.0]), torch.tensor([0, 1, 2, 4])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(4):
        loss = (network(x, time, labels) - x).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        first = next(p for p in network.parameters() if p.ndim == 4)
        optimizer.step()
    assert losses[0] == pytest.approx(float(x.square().mean()), rel=1e-2), "the first output is zero"
    assert losses[-1] < losses[0]
    assert first.grad.any()


def test_weights_depend_on_the_seed_alone_and_leave_global_randomness_alone():
    state = torch.random.get_rng_state()
    one = build("unet-pocket", size=16)
    torch.randn(3)
    two, other = build("unet-pocket", size=16), build("unet-pocket", size=16, seed=1)
    torch.random.set_rng_state(state)
    build("unet-pocket", size=16)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.model.conv_in.weight, other.model.conv_in.weight)


def test_overrides_reach_the_constructor():
    network = build("unet-pocket", size=16, overrides={"dropout": 0.3, "block_out_channels": (16, 16, 16)})
    assert network.model.config.dropout == 0.3
    assert network.model.conv_in.out_channels == 16


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("unet-poket", {}, "unknown network 'unet-poket'; did you mean 'unet-pocket'"),
        ("unet-pocket", {"overrides": {"dropuot": 0.1}}, "UNet2DModel takes no 'dropuot'; did you mean 'dropout'"),
        ("unet-pocket", {"overrides": {"in_channels": 4}}, "'in_channels' follows from the data"),
        ("unet-pocket", {"size": 18}, "cannot work at size 18: height and width must be multiples of 4"),
        ("dit-pocket", {"num_classes": 0}, "num_classes counts classes, got 0"),
        ("unet-pocket", {"channels": 0}, "channels must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_built_is_an_error_with_advice(preset, options, message):
    with pytest.raises(ValueError, match=message):
        build(preset, **options)


def test_the_table_lists_every_preset():
    table = preset_table()
    assert [row[0] for row in table] == list(PRESETS)
    assert len(table) == 13
    assert all(row[1] > 5e5 and row[5] for row in table)


def test_middle_attention_of_adm_has_its_norm():
    """With scale-shift norm the library leaves it out unless attn_norm_num_groups is given."""
    with torch.device("meta"):
        assert build("adm-64").model.mid_block.attentions[0].group_norm is not None
