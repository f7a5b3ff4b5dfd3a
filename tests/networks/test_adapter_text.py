"""Networks that are told a text: which conditions reach them, and what stands for none."""

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from percepta.networks import adapt

TIMES = torch.tensor([0.0, 1.0, 500.0, 999.0])
LABELS = torch.tensor([0, 4, 2, 2])


@pytest.fixture
def text_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=8,
    )


def test_text_conditions_and_their_stored_null(text_unet, images):
    null = torch.full((1, 7, 12), 0.5)
    network = adapt(text_unet, null={"encoder_hidden_states": null})
    assert network.num_classes is None
    text = {"encoder_hidden_states": torch.randn(4, 7, 12)}
    assert network(images, TIMES, text).shape == images.shape
    dropped = network.drop_condition(text, torch.tensor([True, False, True, False]))["encoder_hidden_states"]
    assert torch.equal(dropped[[0, 2]], null.expand(2, 7, 12))
    assert torch.equal(dropped[[1, 3]], text["encoder_hidden_states"][[1, 3]])
    assert torch.equal(network.null_condition(3)["encoder_hidden_states"], null.expand(3, 7, 12))
    assert not [k for k in network.state_dict() if "null" in k], "the null embedding is not a weight"
    with pytest.raises(ValueError, match=r"\[4, ..., 12\], got \(4, 7, 8\)"):
        network(images, TIMES, {"encoder_hidden_states": torch.randn(4, 7, 8)})
    with pytest.raises(ValueError, match=r"'encoder_hidden_states' \[n, ..., 12\], got class_labels"):
        network(images, TIMES, LABELS)
    with pytest.raises(ValueError, match="pad both to one length"):
        network.drop_condition({"encoder_hidden_states": torch.randn(4, 9, 12)}, torch.ones(4, dtype=torch.bool))


def test_text_without_a_stored_null_cannot_be_dropped(text_unet):
    with pytest.raises(ValueError, match="no null condition is stored for 'encoder_hidden_states'"):
        adapt(text_unet).null_condition(2)
    with pytest.raises(
        ValueError, match=r"a null condition 'text' was given, but this UNet2DConditionModel reads 'encoder_hidden_states'"
    ):
        adapt(text_unet, null={"text": torch.zeros(1, 2, 12)})
    with pytest.raises(ValueError, match=r"one row, \[1, ...\], got \(2, 7, 12\)"):
        adapt(text_unet, null={"encoder_hidden_states": torch.zeros(2, 7, 12)})


def test_mmdit_told_text(images):
    model = SD3Transformer2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        caption_projection_dim=16,
        pos_embed_max_size=8,
    )
    network = adapt(model)
    cond = {"encoder_hidden_states": torch.randn(4, 6, 12), "pooled_projections": torch.randn(4, 10)}
    with torch.no_grad():
        expected = model(images, cond["encoder_hidden_states"], cond["pooled_projections"], TIMES).sample
        assert torch.equal(network(images, TIMES, cond), expected)
    with pytest.raises(ValueError, match="class token of 3 classes needs"):
        adapt(model, num_classes=3)


def test_sdxl_conditions_reach_the_network(images):
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 16),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=58,
    )
    network = adapt(model, null={"encoder_hidden_states": torch.zeros(1, 5, 12), "text_embeds": torch.zeros(1, 10)}).eval()
    cond = {"encoder_hidden_states": torch.randn(4, 5, 12), "text_embeds": torch.randn(4, 10), "time_ids": torch.rand(4, 6)}
    with torch.no_grad():
        one = network(images, TIMES, cond)
        for key, value in cond.items():
            assert not torch.equal(one, network(images, TIMES, cond | {key: value + 1})), key
    dropped = network.drop_condition(cond, torch.ones(4, dtype=torch.bool))
    assert torch.equal(dropped["time_ids"], cond["time_ids"])
    assert not dropped["text_embeds"].any()
