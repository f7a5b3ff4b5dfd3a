"""The decoder space: its features are those of `vae.decode`, its gradient passes the autoencoder and stays out of it."""

from typing import Any

import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel
from torch import Tensor

from percepta.networks import Autoencoder, build_autoencoder
from percepta.spaces.decoder import Decoder, windows

torch.set_num_threads(1)

UP = ("UpDecoderBlock2D",) * 3
DOWN = ("DownEncoderBlock2D",) * 3
WIDTHS = (8, 16, 16)


def kl(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(down_block_types=DOWN, up_block_types=UP, block_out_channels=WIDTHS, norm_num_groups=4, **more)


MODELS = {
    "kl": lambda: kl(scaling_factor=0.2),
    "kl-16": lambda: kl(
        latent_channels=16, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False
    ),
    "kl-32": lambda: kl(latent_channels=32, shift_factor=-0.2, scaling_factor=1.5),
    "asymmetric": lambda: AsymmetricAutoencoderKL(
        down_block_types=DOWN, down_block_out_channels=WIDTHS, up_block_types=UP, up_block_out_channels=(12, 16, 20), layers_per_up_block=2,
        norm_num_groups=4,
    ),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(2, 1, 1)
    ),
    "vq": lambda: VQModel(  # its spatial norms have 32 groups
        down_block_types=DOWN, up_block_types=UP, block_out_channels=(32, 32, 32), num_vq_embeddings=16, norm_type="spatial", latent_channels=3
    ),
    "ours": lambda: build_autoencoder("ae-pocket", size=16).model,
}  # fmt: skip


def made(name: str) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(MODELS[name]().eval())


def latents(vae: Autoencoder, count: int = 2, side: int = 4) -> Tensor:
    return torch.randn(count, vae.latent_channels, side, side, generator=torch.Generator().manual_seed(1))


def recorded(vae: Autoencoder, z: Tensor) -> list[Tensor]:
    """What hooks see while the whole image is decoded: after the mid block and each up block, and before each upsampling of a tiny one."""
    found: list[Tensor] = []
    decoder = vae.model.decoder
    if isinstance(vae.model, AutoencoderTiny):
        layers = list(decoder.layers)
        ups = [k for k, layer in enumerate(layers) if isinstance(layer, torch.nn.Upsample)]
        handles = [layers[k].register_forward_pre_hook(lambda m, inputs: found.append(inputs[0])) for k in (*ups, len(layers) - 1)]
    else:
        blocks = (decoder.mid_block, *decoder.up_blocks)
        handles = [block.register_forward_hook(lambda m, inputs, out: found.append(out)) for block in blocks]
    with torch.no_grad():
        vae.decode(z)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_decoding_computes(name: str):
    vae = made(name)
    z = latents(vae)
    space = Decoder(vae)
    with torch.no_grad():
        features = space(z)
    expected = recorded(vae, z)
    assert len(features) == len(expected) == len(space.upscale) >= 3
    for found, hooked, upscale in zip(features, expected, space.upscale, strict=True):
        assert torch.equal(found, hooked)
        assert found.shape[-1] == 4 * upscale


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_passes_and_leaves_the_autoencoder_alone(name: str):
    vae = made(name)
    z = latents(vae).requires_grad_()
    sum(f.square().mean() for f in Decoder(vae)(z)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert z.grad is not None and bool((z.grad.flatten(1).abs().sum(1) > 0).all())
    assert all(p.grad is None and not p.requires_grad for p in vae.parameters())


def test_nothing_behind_the_deepest_layer_is_computed():
    vae = made("kl")
    called: list[int] = []
    for k, block in enumerate(vae.model.decoder.up_blocks):
        block.register_forward_hook(lambda m, inputs, out, k=k: called.append(k))
    some = Decoder(vae, layers=(0, 1))(latents(vae))
    assert called == [0] and len(some) == 2
    every = Decoder(vae)(latents(vae))
    assert all(torch.equal(a, b) for a, b in zip(some, every, strict=False))


@pytest.mark.parametrize("name", ["kl", "tiny"])
def test_checkpointing_changes_nothing_but_memory(name: str):
    vae = made(name)
    grads = []
    for checkpointing in (False, True):
        z = latents(vae).requires_grad_()
        space = Decoder(vae, checkpointing=checkpointing)
        sum(f.square().mean() for f in space(z)).backward()  # pyright: ignore[reportAttributeAccessIssue]
        assert z.grad is not None
        grads.append(z.grad)
    assert torch.equal(*grads)


def test_bf16_is_near_and_float16_is_left():
    vae = made("kl")
    z = latents(vae)
    with torch.no_grad():
        exact, rough = Decoder(vae)(z), Decoder(vae, precision="bf16")(z)
        with torch.autocast("cpu", torch.float16):
            kept = Decoder(vae)(z)
    for a, b, c in zip(exact, rough, kept, strict=True):
        assert b.dtype == torch.bfloat16 and float((a - b).norm() / a.norm()) < 0.02
        assert torch.equal(a, c)  # decoders overflow in float16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shapes_alone_are_decoded_too(precision: str):
    with torch.device("meta"):
        vae = made("kl")
        shapes = [f.shape for f in Decoder(vae, precision=precision)(torch.empty(2, 4, 4, 4))]
    assert shapes == [f.shape for f in Decoder(made("kl"))(latents(made("kl")))]


def test_windows_cut_the_same_place_of_both():
    z = torch.arange(2 * 3 * 5 * 6).reshape(2, 3, 5, 6).float()
    one, other = windows((z, z + 1000), 2, torch.tensor([[0.0, 0.0], [0.999, 0.999]]))
    assert torch.equal(one[0], z[0, :, :2, :2]) and torch.equal(one[1], z[1, :, 3:, 4:])
    assert torch.equal(other, one + 1000)
    (whole,) = windows((z,), 9, torch.rand(2, 2))
    assert torch.equal(whole, z)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: Decoder(made("kl"), layers=(4,)), "layers 0 .mid block. to 3"),
        (lambda: Decoder(made("kl"), layers=()), "layers 0 .mid block. to 3"),
        (lambda: Decoder(made("kl"), precision="fp16"), "fp32 or bf16"),
        (lambda: Decoder(made("kl")).features(torch.zeros(1, 3, 4, 4), {}), "4 channels, got 3"),
        (lambda: Decoder(made("kl")).features(torch.zeros(1, 4, 4), {}), "b, c, h, w"),
    ],
)
def test_wrong_use_is_refused(what: Any, said: str):
    with pytest.raises(ValueError, match=said):
        what()
