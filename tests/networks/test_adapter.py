import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from percepta.formulation import EDM, Denoiser, Formulation
from percepta.networks import Network, adapt, facts_of, load_model
from percepta.path import LinearBeta

TIMES = torch.tensor([0.0, 1.0, 500.0, 999.0])
LABELS = torch.tensor([0, 4, 2, 2])
NULL = 5


def test_every_family_runs_forward_and_backward(family, tiny, images):
    network = tiny(family).train()
    raw = network(images, TIMES, LABELS)
    assert raw.shape == (4, 3, 8, 8)
    raw.square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    expected = {"mmdit": ["model.transformer_blocks.1.attn.add_q_proj.weight", "model.transformer_blocks.1.attn.add_q_proj.bias"]}
    assert silent == expected.get(family, []), "every parameter learns, but the queries of a last context branch that nobody reads"


def test_every_family_hears_its_label_and_its_time(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        one = network(images, TIMES, LABELS)
        assert not torch.equal(one, network(images, TIMES, LABELS.flip(0)))
        assert not torch.equal(one, network(images, TIMES + 0.25, LABELS)), (
            "a quarter of a timestep must be heard: times are floats"
        )
        assert torch.equal(one, network(images, TIMES, LABELS))


def test_negative_and_tiny_times_of_edm_are_heard(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        outs = [network(images, torch.full((4,), t), LABELS) for t in (-1.55, -0.3, 0.0, 0.3, 1.1)]
    assert all(torch.isfinite(o).all() for o in outs)
    assert len({float(o.sum()) for o in outs}) == 5


def test_rows_do_not_see_each_other(family, tiny, images):
    network = tiny(family).double()
    with torch.no_grad():
        whole = network(images.double(), TIMES, LABELS)
        for k in range(4):
            part = network(images[k : k + 1].double(), TIMES[k : k + 1], LABELS[k : k + 1])
            torch.testing.assert_close(
                part, whole[k : k + 1], rtol=1e-5, atol=1e-6
            )  # embeddings of time are float32 in every model


def test_unconditional_networks_take_no_condition(family, tiny, images):
    network = tiny(family, None)
    assert network.num_classes is None
    assert not network.conditional
    assert network.null_condition(4) is None
    assert network(images, TIMES).shape == images.shape
    with pytest.raises(ValueError, match="reads no condition, got class_labels"):
        network(images, TIMES, LABELS)


def test_integer_times_equal_diffusers_own_timesteps_to_the_bit(tiny, images):
    network = tiny("unet")
    with torch.no_grad():
        assert torch.equal(network(images, TIMES, LABELS), network.model(images, TIMES.long(), LABELS).sample)


def test_the_null_label_is_a_row_of_its_own(family, tiny, images):
    network = tiny(family)
    assert network.num_classes == 5
    null = network.null_condition(4)
    assert null.tolist() == [NULL] * 4
    with torch.no_grad():
        outs = [network(images, TIMES, torch.full((4,), k)) for k in range(6)]
        assert torch.equal(network(images, TIMES, null), outs[NULL])
    assert len({float(o.sum()) for o in outs}) == 6


def test_dropping_replaces_exactly_the_chosen_rows(family, tiny):
    network = tiny(family)
    before = LABELS.clone()
    dropped = network.drop_condition(LABELS, torch.tensor([True, False, False, True]))
    assert dropped.tolist() == [NULL, 4, 2, NULL]
    assert torch.equal(LABELS, before), "the batch's own condition must not change"
    assert network.drop_condition(None, torch.tensor([True])) is None


def test_the_estimator_drops_alone(tiny, images):
    """DiTTransformer2DModel drops labels in every block by itself, from the global generator: not here."""
    network = tiny("dit").train()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        outs = {float(network(images, TIMES, LABELS).sum()) for _ in range(20)}
    assert len(outs) == 1
    assert torch.equal(state, torch.random.get_rng_state())
    foreign = copy.deepcopy(network.model)
    for block in foreign.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.5
    with torch.no_grad():
        drawn = {float(foreign(images, TIMES, LABELS).sample.sum()) for _ in range(20)}
    assert len(drawn) > 1, "the trap that this test is about is gone"


def test_save_and_load_give_the_same_network(family, tiny, images, tmp_path):
    network = tiny(family)
    network.save_pretrained(tmp_path / "model")
    again = adapt(load_model(tmp_path / "model"))
    assert again.reads == network.reads
    with torch.no_grad():
        assert torch.equal(again(images, TIMES, LABELS), network(images, TIMES, LABELS))


def test_facts_survive_in_the_models_own_folder_and_plain_diffusers_is_not_disturbed(tiny, images, tmp_path, caplog):
    network = adapt(tiny("unet").model, time_factor=0.25, num_heads=3)
    network.save_pretrained(tmp_path)
    plain = UNet2DModel.from_pretrained(tmp_path)
    assert not caplog.records, "a plain diffusers must load the folder without a word"
    again = adapt(plain)
    assert facts_of(plain) == facts_of(network.model)
    assert (again.num_classes, again.time_factor) == (5, 0.25)
    with torch.no_grad():
        assert torch.equal(again(images, TIMES, LABELS), network(images, TIMES, LABELS))


def test_time_factor_multiplies_the_time(tiny, images):
    plain, scaled = tiny("unet"), adapt(tiny("unet").model, time_factor=0.25)
    with torch.no_grad():
        assert torch.equal(scaled(images, TIMES, LABELS), plain(images, TIMES / 4, LABELS))


def test_number_of_heads(tiny, images):
    network = tiny("unet")
    three = adapt(copy.deepcopy(network.model), num_heads=3)
    heads = {m.heads for m in three.modules() if type(m).__name__ == "Attention"}
    assert heads == {3}
    with torch.no_grad():  # this model has heads of 8 at 24 channels: three of them, so nothing changes, but one head differs
        assert torch.equal(network(images, TIMES, LABELS), three(images, TIMES, LABELS))
        assert not torch.equal(
            network(images, TIMES, LABELS), adapt(copy.deepcopy(network.model), num_heads=1)(images, TIMES, LABELS)
        )
    with pytest.raises(ValueError, match="cannot have num_heads=5"):
        adapt(network.model, num_heads=5)


def test_a_foreign_class_table_has_no_null_label(images):
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        layers_per_block=1,
        num_class_embeds=6,
    )
    network = adapt(model)
    assert network.num_classes == 6
    with pytest.raises(ValueError, match="has no null label"):
        network.null_condition(2)
    with pytest.raises(ValueError, match="has no null label"):
        network.drop_condition(torch.tensor([1]), torch.tensor([False]))
    assert adapt(model, num_classes=5).null_condition(1).tolist() == [5]
    with pytest.raises(ValueError, match="6 classes, or 5 and the null label; got num_classes=4"):
        adapt(model, num_classes=4)


def test_learned_variance_comes_back_whole_and_the_denoiser_reads_the_first_channels(images):
    model = UNet2DModel(
        sample_size=8,
        out_channels=6,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=8,
        layers_per_block=1,
    )
    network = adapt(model)
    assert (network.in_channels, network.out_channels) == (3, 6)
    denoiser = Denoiser(network, Formulation(LinearBeta()))
    with torch.no_grad():
        raw = network(images, torch.tensor([499.0] * 4))
        _, taps = denoiser.full(images, torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(taps["output"], raw[:, :3])
    torch.testing.assert_close(taps["extra"], raw[:, 3:])


def test_edm_denoiser_over_every_family(family, tiny, images):
    denoiser = Denoiser(tiny(family), EDM)
    with torch.no_grad():
        x0_hat = denoiser(80 * images, torch.tensor([0.002, 0.5, 5.0, 80.0], dtype=torch.float64), LABELS)
    assert torch.isfinite(x0_hat).all()


@pytest.mark.parametrize(
    ("x", "time", "cond", "message"),
    [
        (torch.zeros(2, 4, 8, 8), torch.zeros(2), None, r"reads \[b, 3, h, w\], got \(2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 64), torch.zeros(2), None, r"reads \[b, 3, h, w\]"),
        (torch.zeros(2, 3, 7, 8), torch.zeros(2), None, "cannot take 7 x 8: height and width must be multiples of 2"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(3), None, "one float time per sample"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long), None, "one float time per sample"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), None, r"integer labels 0 .. 4, got nothing; .* network.null_condition\(n\)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), {"text": torch.zeros(2, 1)}, "got text"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2), "vector of int64, got torch.float32"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([1]), r"of 2 samples must be \[2, ...\], got \(1,\)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([1, 6]), r"must lie in 0 .. 4 \(5 is the null label\), got 1 to 6"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([-1, 0]), "got -1 to 0"),
    ],
)
def test_wrong_input_is_refused_with_advice(family, tiny, x, time, cond, message):
    with pytest.raises(ValueError, match=message):
        tiny(family)(x, time, cond)


def test_sizes_that_a_transformer_cannot_take(tiny):
    with pytest.raises(ValueError, match="square images only"):
        tiny("dit")(torch.zeros(1, 3, 8, 16), torch.zeros(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="position table ends at 16 x 16"):
        tiny("mmdit")(torch.zeros(1, 3, 24, 24), torch.zeros(1), torch.tensor([0]))
    assert tiny("mmdit")(torch.zeros(1, 3, 8, 16), torch.zeros(1), torch.tensor([0])).shape == (1, 3, 8, 16)


def test_models_that_cannot_be_driven_are_refused():
    with pytest.raises(ValueError, match="no adapter for Linear; known: UNet2DModel, DiTTransformer2DModel"):
        adapt(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no adapter for AutoencoderKL"):
        adapt(AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)))
    for kind in ("learned", "fourier"):
        model = UNet2DModel(
            block_out_channels=(16, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=8,
            time_embedding_type=kind,
            num_train_timesteps=10,
        )
        with pytest.raises(ValueError, match=f"time_embedding_type='{kind}' cannot be driven"):
            adapt(model)


def test_bfloat16_weights(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        full = network(images, TIMES, LABELS)
        half = network.to(torch.bfloat16)(images, TIMES, LABELS)
    assert half.dtype == torch.bfloat16
    assert float((half.float() - full).norm() / full.norm()) < 0.1
    network.to(torch.bfloat16)(images.requires_grad_(), TIMES, LABELS).float().sum().backward()
    assert images.grad is not None


def test_autocast(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        full = network(images, TIMES, LABELS)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(images, TIMES, LABELS)
    assert float((half.float() - full).norm() / full.norm()) < 0.1


def test_channels_last_changes_the_layout_and_not_the_numbers(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        expected = network(images, TIMES, LABELS)
        got = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last), TIMES, LABELS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(family, tiny, images):
    gradients = []
    for checkpointed in (False, True):
        network = tiny(family).train()
        if checkpointed:
            network.enable_gradient_checkpointing()
            assert network.model.is_gradient_checkpointing
        network(images, TIMES, LABELS).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_checkpointing_is_refused_where_there_is_none(tiny, monkeypatch):
    network = tiny("ddpmpp")
    monkeypatch.setattr(type(network.model), "_supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match="DDPMPP does not support gradient checkpointing"):
        network.enable_gradient_checkpointing()


def test_a_network_can_be_copied_for_an_average(family, tiny, images):
    network = tiny(family)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        assert torch.equal(twin(images, TIMES, LABELS), network(images, TIMES, LABELS))
        for p in twin.parameters():
            p.mul_(2)
        assert not torch.equal(twin(images, TIMES, LABELS), network(images, TIMES, LABELS))


def test_state_dict_holds_the_model_alone(family, tiny):
    network: Network = tiny(family)
    assert all(key.startswith("model.") for key in network.state_dict())


@pytest.mark.slow
def test_compiled_networks_give_the_same_output(family, tiny, images):
    network = tiny(family)
    with torch.no_grad():
        expected = network(images, TIMES, LABELS)
        got = torch.compile(network)(images, TIMES, LABELS)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
