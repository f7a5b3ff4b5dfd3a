"""Networks of every family at 8 pixels, and the smallest runs of tests/training."""

import processes
import pytest
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel

from percepta.networks import adapt
from percepta.networks.ddpmpp import DDPMPP


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("network")))


@pytest.fixture(scope="session")
def dropping(tmp_path_factory):
    """The same with dropout."""
    return processes.Tiny(processes.small_network(tmp_path_factory.mktemp("dropping"), dropout=0.2))


BLOCKS = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8}
MODELS = {
    "unet": lambda: UNet2DModel(sample_size=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                up_block_types=("AttnUpBlock2D", "UpBlock2D"), **BLOCKS),
    "dit": lambda: DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=3, num_layers=2,
                                         sample_size=8, patch_size=2, num_embeds_ada_norm=1),
    "mmdit": lambda: SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=8,
                                           num_attention_heads=2, joint_attention_dim=1, caption_projection_dim=16,
                                           pooled_projection_dim=1, pos_embed_max_size=8),
    "condition": lambda: UNet2DConditionModel(sample_size=8, in_channels=3, out_channels=3, cross_attention_dim=8,
                                              down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                              up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **BLOCKS),
    "ddpmpp": lambda: DDPMPP(sample_size=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attention_sizes=(4,)),
}  # fmt: skip


def shaken(model):
    """Weights that are not zero anywhere: the papers' first weights would hide what a layer does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15 / max(p[0].numel() if p.ndim > 1 else 10, 1) ** 0.5)
    return model.eval()


class Made:
    """A network with inputs that fit it."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        self.network = adapt(shaken(MODELS[kind]()))
        self.model = self.network.model
        self.x, self.time = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 500.0])
        self.cond = {"encoder_hidden_states": torch.randn(2, 4, 8)} if kind == "condition" else None

    def __call__(self) -> torch.Tensor:
        dtype = self.network.dtype
        cond = None if self.cond is None else {k: v.to(dtype) for k, v in self.cond.items()}
        return self.network(self.x.to(dtype), self.time, cond)


@pytest.fixture(params=list(MODELS))
def made(request):
    return Made(request.param)


@pytest.fixture(scope="session")
def make():
    return Made
