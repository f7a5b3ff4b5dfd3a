"""Hidden layers of networks: which one is read, that the pass ends there, and that the network is as before afterwards."""

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from percepta.networks import CascadeSpec, Network, adapt, build_cascade
from percepta.networks.ddpmpp import DDPMPP
from percepta.networks.hidden import hidden_layer, stopped_after
from percepta.path import Cosine

torch.set_num_threads(1)
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TOKENS = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "num_layers": 3, "sample_size": 8}
MODELS = {
    "unet": lambda: UNet2DModel(**UNET, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False),
    "condition-unet": lambda: UNet2DConditionModel(
        **UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6, attention_head_dim=2,
    ),
    "ddpmpp": lambda: DDPMPP(sample_size=8, in_channels=4, out_channels=4, model_channels=16, channel_mult=(1, 1), num_blocks=1, attention_sizes=(), dropout=0.0),
    "dit": lambda: DiTTransformer2DModel(**TOKENS, num_embeds_ada_norm=1),
    "mmdit": lambda: SD3Transformer2DModel(
        **TOKENS, out_channels=4, joint_attention_dim=6, pooled_projection_dim=6, caption_projection_dim=8, pos_embed_max_size=8
    ),
}  # fmt: skip
DEPTHS = {"unet": None, "condition-unet": None, "ddpmpp": None, "dit": 2, "mmdit": 3}
SHAPES = {"unet": (16, 4, 4), "condition-unet": (16, 4, 4), "ddpmpp": (16, 4, 4), "dit": (16, 8), "mmdit": (16, 8)}


def network(name: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return adapt(MODELS[name]()).eval()


def condition(name: str) -> Any:
    words = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    return {"mmdit": {"encoder_hidden_states": words, "pooled_projections": words[:, 0]}, "condition-unet": {"encoder_hidden_states": words}}.get(name)  # fmt: skip


def call(made: Network, name: str) -> Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return made(x, torch.tensor([3.0, 500.0]), condition(name))


@pytest.mark.parametrize("name", MODELS)
def test_the_pass_ends_at_the_layer(name):
    made = network(name)
    layer = hidden_layer(made, DEPTHS[name])
    full, recorded = call(made, name), []
    hook = layer.register_forward_hook(lambda module, given, out: recorded.append(out))
    call(made, name)
    hook.remove()
    expected = recorded[0][1] if name == "mmdit" else recorded[0]
    later = []
    leaves = [module for module in made.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(lambda module, given, out: later.append(module)) for module in leaves]
    with stopped_after(layer) as found:
        call(made, name)
        raise AssertionError("the pass went on")
    for one in hooks:
        one.remove()
    assert len(found) == 1 and torch.equal(found[0], expected) and tuple(found[0].shape) == (2, *SHAPES[name])
    assert later[-1] in set(layer.modules()), "a module behind the layer has run"
    assert not any(module._forward_hooks for module in made.modules())
    assert torch.equal(call(made, name), full)


def test_another_error_passes_and_leaves_no_hook():
    made = network("unet")
    layer = hidden_layer(made)
    with pytest.raises(ValueError, match="this UNet2DModel reads"), stopped_after(layer):
        made(torch.zeros(1, 5, 8, 8), torch.zeros(1))
    assert not layer._forward_hooks


def test_layers_that_there_are_not():
    for depth in (None, 0, 4):
        with pytest.raises(ValueError, match="1 to 3: give the depth"):
            hidden_layer(network("dit"), depth)
    for name in ("unet", "condition-unet", "ddpmpp"):
        with pytest.raises(ValueError, match="leave it out"):
            hidden_layer(network(name), 1)
    bare = UNet2DModel(**UNET, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
    with pytest.raises(ValueError, match="without a mid block"):
        hidden_layer(adapt(bare))
    cascade = build_cascade(CascadeSpec("dual", "unet-pocket"), Cosine(10), size=8)
    with pytest.raises(ValueError, match="no hidden layer of Cascade"):
        hidden_layer(cascade)


def test_every_depth_of_a_transformer_is_another_layer():
    made = network("mmdit")
    layers = [hidden_layer(made, depth) for depth in (1, 2, 3)]
    assert isinstance(layers[0], nn.Module) and layers == list(made.model.transformer_blocks)
