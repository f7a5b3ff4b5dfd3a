"""Which layers get an adapter."""

import pytest
from torch import nn

from percepta.peft.targets import chosen_layers


def ends(made, *asked):
    """The last words of the chosen names, without numbers: what a reader would call the layers."""
    names = chosen_layers(made.model, asked)
    assert names == [n for n, _ in made.model.named_modules() if n in names]
    return {".".join([w for w in name.split(".") if not w.isdigit()][-1:]) for name in names}


ATTENTION = {"to_q", "to_k", "to_v", "to_out"}
USUAL = {
    "unet": ATTENTION | {"conv1", "conv2", "conv_shortcut"},
    "dit": ATTENTION | {"proj", "net"},
    "mmdit": ATTENTION | {"proj", "net", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"},
    "condition": ATTENTION | {"proj", "net"},
    "ddpmpp": {"conv0", "conv1", "shortcut", "qkv", "out"},
}


@pytest.mark.parametrize("kind", USUAL)
def test_attention_and_what_else_carries_the_network(make, kind):
    assert ends(make(kind)) == USUAL[kind]


@pytest.mark.parametrize("kind", USUAL)
def test_every_attention_projection_is_taken(make, kind):
    made = make(kind)
    taken = chosen_layers(made.model)
    projections = [n for n, m in made.model.named_modules() if n.endswith((".to_q", ".to_k", ".to_v", ".qkv")) and m is not None]
    assert projections
    assert set(projections) <= set(taken)


def test_a_layer_by_the_end_of_its_name_and_a_block_by_its_name(make):
    made = make("unet")
    assert ends(made, "to_q", "to_v") == {"to_q", "to_v"}
    assert all(name.startswith("mid_block.") for name in chosen_layers(made.model, ("mid_block",)))
    assert ends(made, "mid_block") >= {"to_q", "conv1", "time_emb_proj"}
    assert chosen_layers(made.model, ("mid_block.attentions.0.to_q",)) == ["mid_block.attentions.0.to_q"]
    assert chosen_layers(made.model, ("conv_out",)) == ["conv_out"]


@pytest.mark.parametrize(("asked", "near"), [("to_qq", "to_q"), ("atentions", "attentions"), ("norm1", "conv_in")])
def test_a_name_that_matches_nothing_is_refused_with_near_ones(make, asked, near):
    with pytest.raises(ValueError, match=rf"--lora-targets {asked}: no linear .* UNet2DModel has that name; near are .*\b{near}\b"):
        chosen_layers(make("unet").model, ("to_k", asked))


def test_a_network_of_unknown_blocks_must_be_told():
    with pytest.raises(ValueError, match="say with --lora-targets .* 0, 2"):
        chosen_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
