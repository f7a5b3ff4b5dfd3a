"""Where the blocks of a network end, for methods that put weights at these places: attention, and the MLP or what stands for it."""

from collections.abc import Callable
from typing import Any

from diffusers.models.attention import BasicTransformerBlock, FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from percepta.networks.ddpmpp import Block, SelfAttention

BLOCKS = (BasicTransformerBlock, JointTransformerBlock)


def output_layers(model: nn.Module) -> list[str]:
    """The last layer of each attention and each MLP, by name. Where there are no MLPs, in a convolutional U-Net, a residual block's last
    convolution is in the place of one, as for --peft lora."""
    ends = {Attention: ("to_out.0", "to_add_out"), SelfAttention: ("out",), FeedForward: ("net.2",)}
    if not _within(model, FeedForward):
        ends |= {ResnetBlock2D: ("conv2",), Block: ("conv1",)}
    found = []
    for name, module in model.named_modules():
        for end in ends.get(type(module), ()):
            if isinstance(_sub(module, end), nn.Linear | nn.Conv2d):
                found.append(f"{name}.{end}")
    return found


def _sub(module: nn.Module, path: str) -> Any:
    """`to_add_out` is None, or not there, where an attention has no second stream."""
    found: Any = module
    for word in path.split("."):
        found = dict(found.named_children()).get(word) if isinstance(found, nn.Module) else None
    return found


def _within(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def mlps(model: nn.Module, method: str) -> list[str]:
    return _needed(model, method, lambda: _within(model, FeedForward), "MLP")


def transformer_blocks(model: nn.Module, method: str) -> list[str]:
    found = _needed(
        model, method, lambda: [n for k in BLOCKS for n in _within(model, k)], "sequence of tokens with blocks of its own"
    )
    return [name for name, _ in model.named_modules() if name in found]


def _needed(model: nn.Module, method: str, look: Callable[[], list[str]], what: str) -> list[str]:
    found = look()
    if not found:
        raise ValueError(
            f"--peft {method} is for networks with transformer blocks (DiT, MMDiT, text U-Nets): this {type(model).__name__} has no {what}; "
            "diffit, bitfit, lora and dora fit every network"
        )
    return found
