"""A network that goes on at another size: tokens keep the range of positions that they were trained in, also in the saved folder."""

import itertools

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

from percepta.networks import adapt, build, facts_of, load_model

TIMES, LABELS = torch.full((2,), 300.0), torch.tensor([1, 3])
TRANSFORMERS = ("dit", "mmdit")


def noise(size, seed=1, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def positions(network, size):
    """What the network adds to its tokens, [h, w, width]: the embedding of an empty image, without the convolution's bias."""
    embed = network.model.pos_embed
    with torch.no_grad():
        tokens = embed(torch.zeros(1, 3, size, size)) - embed.proj.bias
    side = size // embed.patch_size
    return tokens.reshape(side, side, -1)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_finer_grid_holds_the_old_positions(tiny, kind, factor):
    network = tiny(kind)
    old = positions(network, 8)
    network.resize(8 * factor)
    assert network.sample_size == 8 * factor
    torch.testing.assert_close(positions(network, 8 * factor)[::factor, ::factor], old, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("size", [4, 12, 16, 40])
def test_the_range_is_kept_and_evenly_divided(tiny, kind, size):
    """By the formula: the first token stays where it was, n tokens lie as far apart as the 4 old ones did on the whole.

    The tiny DiT's 4 tokens stood at 0 .. 3. The tiny MMDiT's table has 8 rows that are half a position apart, its middle starts at row 2.
    """
    network, n = tiny(kind), size // 2
    network.resize(size)
    start, apart = {"dit": (0.0, 1.0), "mmdit": (1.0, 0.5)}[kind]
    place = start + torch.arange(n, dtype=torch.float64) * apart * 4 / n
    angles = place[:, None] * 10000.0 ** -(torch.arange(4) / 4)
    row = torch.cat([angles.sin(), angles.cos()], 1).float()
    expected = torch.cat([row[None].expand(n, n, 8), row[:, None].expand(n, n, 8)], -1)
    torch.testing.assert_close(positions(network, size), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "size"),
    [("unet", 16), ("condition-unet", 16), ("ddpmpp", 16), ("ddpmpp", 4), *itertools.product(TRANSFORMERS, (4, 16, 32))],
)
def test_saved_and_loaded_it_is_the_same_network(kind, tiny, size, tmp_path):
    network = tiny(kind)
    network.resize(size)
    network.save_pretrained(tmp_path / "model")
    again = adapt(load_model(tmp_path / "model"))
    assert again.sample_size == network.sample_size == size
    for side in (size, 8):
        with torch.no_grad():
            assert torch.equal(again(noise(side), TIMES, LABELS), network(noise(side), TIMES, LABELS)), side


@pytest.mark.parametrize(("kind", "cls"), [("dit", DiTTransformer2DModel), ("mmdit", SD3Transformer2DModel)])
def test_plain_diffusers_reads_the_same_positions(tiny, kind, cls, tmp_path, caplog):
    network = tiny(kind)
    network.resize(16)
    network.save_pretrained(tmp_path)
    plain = cls.from_pretrained(tmp_path)
    assert not caplog.records
    token = torch.nn.functional.one_hot(LABELS, 6).float()
    given = (TIMES, LABELS) if kind == "dit" else (token[:, None], token, TIMES)
    with torch.no_grad():
        assert torch.equal(plain(noise(16), *given, return_dict=False)[0], network(noise(16), TIMES, LABELS))


def test_a_dit_knows_its_old_size_to_the_bit(tiny):
    network, before = tiny("dit"), tiny("dit")
    network.resize(16)
    with torch.no_grad():
        assert torch.equal(network(noise(8), TIMES, LABELS), before(noise(8), TIMES, LABELS))


@pytest.mark.parametrize("kind", ["dit", "mmdit", "ddpmpp"])
@pytest.mark.parametrize("sizes", [(16, 8), (4, 8), (32, 4, 8)])
@pytest.mark.parametrize("saved", [False, True])
def test_there_and_back_is_where_it_was(kind, tiny, sizes, saved, tmp_path):
    network, before = tiny(kind), tiny(kind)
    for size in sizes:
        network.resize(size)
        if saved:
            network.save_pretrained(tmp_path / str(size))
            network = adapt(load_model(tmp_path / str(size)))
    with torch.no_grad():
        got, wanted = network(noise(8), TIMES, LABELS), before(noise(8), TIMES, LABELS)
    if kind == "mmdit":  # its table is written anew, in float32
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(got, wanted)
        assert facts_of(network.model) == facts_of(before.model)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_two_steps_are_one(tiny, kind):
    once, twice = tiny(kind), tiny(kind)
    once.resize(24)
    twice.resize(16)
    twice.resize(24)
    torch.testing.assert_close(positions(twice, 24), positions(once, 24), atol=2e-6, rtol=0)


def pixels(kind, size=8):
    """A network with a token per pixel whose positions matter."""
    shape = {"sample_size": size, "in_channels": 3, "out_channels": 3, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32,
             "patch_size": 1}  # fmt: skip
    text = {"joint_attention_dim": 1, "pooled_projection_dim": 1, "caption_projection_dim": 64, "pos_embed_max_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = DiTTransformer2DModel(**shape, num_embeds_ada_norm=1) if kind == "dit" else SD3Transformer2DModel(**shape, **text)
    return adapt(model).eval()


def enlarged(x):
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_an_enlarged_image_gives_the_enlarged_output(kind):
    """Each token is there four times, so attention averages over the same values: only positions between the old ones are new."""
    network, beyond, x = pixels(kind), pixels(kind, 16), noise(8)
    beyond.model.load_state_dict(pixels(kind).model.state_dict())  # the same weights, but positions that go on beyond the old ones
    with torch.no_grad():
        wanted = enlarged(network(x, TIMES))
        network.resize(16)
        near, far = ((net(enlarged(x), TIMES) - wanted).square().mean().sqrt() / wanted.std() for net in (network, beyond))
    assert near < 0.25
    assert far > 2 * near


def test_a_table_that_was_stored_in_16_bits_is_read(tiny):
    network, rounded = tiny("mmdit"), tiny("mmdit")
    table = rounded.model.pos_embed.pos_embed
    table.copy_(table.bfloat16())
    for net in (network, rounded):
        net.resize(32)
    torch.testing.assert_close(positions(rounded, 32), positions(network, 32), atol=0.01, rtol=0)


@pytest.mark.parametrize("most", [1, 8])
def test_a_table_of_something_else_is_refused(most):
    model = SD3Transformer2DModel(sample_size=2, in_channels=3, out_channels=3, num_layers=1, attention_head_dim=8, num_attention_heads=2,
                                  joint_attention_dim=1, pooled_projection_dim=1, caption_projection_dim=16, pos_embed_max_size=most)  # fmt: skip
    network = adapt(model)
    if most > 1:
        model.pos_embed.pos_embed += torch.linspace(0, 1, 64)[None, :, None]
    before = model.pos_embed.pos_embed.clone()
    with pytest.raises(ValueError, match=f"position table .*{most} x {most}.* sines and cosines"):
        network.resize(4)
    assert (network.sample_size, model.config.sample_size, model.config.pos_embed_max_size) == (2, 2, most)
    assert torch.equal(model.pos_embed.pos_embed, before)


@pytest.mark.parametrize("kind", ["unet", *TRANSFORMERS])
def test_a_size_that_does_not_fit_is_refused(kind, tiny):
    network = tiny(kind)
    with pytest.raises(ValueError, match="cannot be trained at 15 x 15: height and width must be multiples of 2"):
        network.resize(15)
    with pytest.raises(ValueError, match="cannot be trained at 0 x 0"):
        network.resize(0)
    assert network.sample_size == 8


@pytest.mark.parametrize("preset", ["dit-pocket", "mmdit-pocket"])
def test_presets_go_on_at_four_times_their_size(preset):
    network = build(preset, size=8)
    old = positions(network, 8)
    network.resize(32)
    torch.testing.assert_close(positions(network, 32)[::4, ::4], old, atol=2e-6, rtol=0)
