"""Tiny models of every family, with weights that are nowhere zero, so that every input shows in the output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel

from percepta.networks import Network, adapt
from percepta.networks.ddpmpp import DDPMPP

CLASSES = 5
UNET = {"sample_size": 8, "block_out_channels": (16, 24), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}


def _unet(classes: int | None) -> tuple[Any, int | None]:
    model = UNet2DModel(
        **UNET,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=None if classes is None else classes + 1,
    )
    return model, classes


def _dit(classes: int | None) -> tuple[Any, int | None]:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, num_embeds_ada_norm=classes or 1
    ), None


def _mmdit(classes: int | None) -> tuple[Any, int | None]:
    width = (classes or 0) + 1
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        caption_projection_dim=16,
        pos_embed_max_size=8,
    ), classes


def _condition_unet(classes: int | None) -> tuple[Any, int | None]:
    model = UNet2DConditionModel(
        **UNET,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        num_class_embeds=None if classes is None else classes + 1,
    )
    return model, classes


def _ddpmpp(classes: int | None) -> tuple[Any, int | None]:
    return DDPMPP(
        sample_size=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_sizes=(8,), dropout=0.0, num_classes=classes
    ), None


FAMILIES: dict[str, Callable[[int | None], tuple[Any, int | None]]] = {
    "unet": _unet,
    "dit": _dit,
    "mmdit": _mmdit,
    "condition-unet": _condition_unet,
    "ddpmpp": _ddpmpp,
}


def make(name: str, classes: int | None = CLASSES) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, given = FAMILIES[name](classes)
        for p in model.parameters():
            if float(p.detach().abs().max()) < 1e-3:
                torch.nn.init.normal_(p, std=0.1)
    return adapt(model, num_classes=given).eval()


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny() -> Callable[..., Network]:
    return make


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
