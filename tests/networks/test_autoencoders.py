import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, UNet2DModel, VQModel
from PIL import Image
from safetensors.torch import load_file

from percepta.networks import Autoencoder, build_autoencoder, load_autoencoder
from percepta.networks.taef2 import build_taef2

KINDS = ("kl", "asymmetric", "tiny", "vq")
CERTAIN = ("tiny", "vq")  # their latents have no deviation


def make(kind: str) -> Autoencoder:
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "kl":
            return Autoencoder(AutoencoderKL(**blocks, block_out_channels=(8, 8), shift_factor=0.3, scaling_factor=2.0)).eval()
        if kind == "asymmetric":
            return Autoencoder(
                AsymmetricAutoencoderKL(**blocks, down_block_out_channels=(8, 8), up_block_out_channels=(8, 16))
            ).eval()
        if kind == "vq":
            return Autoencoder(VQModel(**blocks, block_out_channels=(8, 8), num_vq_embeddings=64, scaling_factor=2.0)).eval()
        return Autoencoder(
            AutoencoderTiny(
                encoder_block_out_channels=(8, 8),
                decoder_block_out_channels=(8, 8),
                num_encoder_blocks=(1, 1),
                num_decoder_blocks=(1, 1),
                latent_channels=2,
            )
        ).eval()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_shapes_and_gradients(kind, images):
    autoencoder = make(kind)
    assert (autoencoder.factor, autoencoder.latent_channels, autoencoder.in_channels) == (2, 2, 3)
    mean, std = autoencoder.encode(images.requires_grad_())
    assert mean.shape == std.shape == (2, 2, 8, 8)
    decoded = autoencoder.decode(mean)
    assert decoded.shape == images.shape
    decoded.sum().backward()
    assert images.grad.any()
    assert autoencoder.deterministic == (kind in CERTAIN)
    assert bool(std.any()) != autoencoder.deterministic


def test_encode_and_decode_are_diffusers_own_with_the_scale_between(kind, images):
    autoencoder = make(kind)
    model = autoencoder.model
    with torch.no_grad():
        mean, std = autoencoder.encode(images)
        raw = model.encode(images)
        raw_mean = raw.latents if kind in CERTAIN else raw.latent_dist.mean
        scale, shift = model.config.scaling_factor, model.config.get("shift_factor") or 0.0
        torch.testing.assert_close(mean, (raw_mean - shift) * scale)
        if kind not in CERTAIN:
            torch.testing.assert_close(std, raw.latent_dist.std * scale)
        torch.testing.assert_close(autoencoder.decode(mean), model.decode(raw_mean).sample)


def test_set_scale_makes_unit_latents_and_is_saved(kind, images, tmp_path):
    autoencoder = make(kind)
    with torch.no_grad():
        raw, _ = autoencoder.posterior(images)
        decoded = autoencoder.decode(autoencoder.encode(images)[0])
        center = 0.0 if kind in ("asymmetric", "vq") else float(raw.mean())
        autoencoder.set_scale(float(raw.std()), center)
        scaled, _ = autoencoder.encode(images)
        assert float(scaled.std()) == pytest.approx(1, rel=1e-5)
        assert float(scaled.mean()) == pytest.approx((float(raw.mean()) - center) / float(raw.std()), abs=1e-5)
        torch.testing.assert_close(autoencoder.decode(scaled), decoded, rtol=1e-4, atol=1e-5)
        autoencoder.save_pretrained(tmp_path)
        again = load_autoencoder(tmp_path)
        assert torch.equal(again.encode(images)[0], scaled)


def test_latents_of_a_codebook_have_its_width_and_decode_to_its_entries(images):
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (8,)}
    torch.manual_seed(0)
    autoencoder = Autoencoder(VQModel(**blocks, norm_num_groups=4, latent_channels=4, vq_embed_dim=3, num_vq_embeddings=16)).eval()
    assert autoencoder.latent_channels == 3
    z = autoencoder.encode(images)[0].detach().requires_grad_()
    assert z.shape == (2, 3, 16, 16)
    entries = autoencoder.model.quantize(autoencoder.raw(z))[0].detach()
    book = autoencoder.model.quantize.embedding.weight
    assert float(torch.cdist(entries.permute(0, 2, 3, 1).reshape(-1, 3), book).min(1).values.max().detach()) < 1e-3
    decoded = autoencoder.decode(z)
    torch.testing.assert_close(decoded, autoencoder.model.decode(entries, force_not_quantize=True).sample)
    leaf = entries.requires_grad_()
    plain = torch.autograd.grad(autoencoder.model.decode(leaf, force_not_quantize=True).sample.square().mean(), leaf)[0]
    found = torch.autograd.grad(decoded.square().mean(), z)[0]
    torch.testing.assert_close(found * autoencoder.scale, plain, rtol=1e-3, atol=1e-7)


def test_per_channel_statistics_of_the_configuration(images):
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=2,
        scaling_factor=0.5,
        latents_mean=(1.0, -2.0),
        latents_std=(2.0, 4.0),
    )
    autoencoder = Autoencoder(model).eval()
    with torch.no_grad():
        raw, _ = autoencoder.posterior(images)
        scaled, _ = autoencoder.encode(images)
        expected = torch.stack([(raw[:, 0] - 1) * 0.5 / 2, (raw[:, 1] + 2) * 0.5 / 4], dim=1)
        torch.testing.assert_close(scaled, expected)
        torch.testing.assert_close(autoencoder.raw(scaled), raw)


def test_wrong_input_is_refused(kind):
    autoencoder = make(kind)
    with pytest.raises(ValueError, match=r"float \[b, 3, h, w\] in \[-1, 1\], got torch.uint8"):
        autoencoder.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got torch.float32 \(1, 1, 16, 16\)"):
        autoencoder.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="multiples of 2, got 15 x 16"):
        autoencoder.encode(torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match=r"latents are \[b, 2, h, w\], got \(1, 4, 8, 8\)"):
        autoencoder.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        autoencoder.set_scale(0)


def test_other_models_and_scales_are_refused():
    with pytest.raises(ValueError, match="UNet2DModel is no autoencoder known here; known: AutoencoderKL, Asymm"):
        Autoencoder(
            UNet2DModel(
                block_out_channels=(8, 8),
                norm_num_groups=4,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
            )
        )
    with pytest.raises(ValueError, match="knows no shift_factor"):
        make("asymmetric").set_scale(1.0, 0.5)
    with pytest.raises(ValueError, match="did you mean 'ae-pocket'"):
        build_autoencoder("ae-poket")
    with pytest.raises(ValueError, match="did you mean 'latent_channels'"):
        build_autoencoder(overrides={"latent_channel": 8})


def test_gradient_checkpointing(images):
    gradients = []
    for checkpointed in (False, True):
        autoencoder = make("kl").train()
        if checkpointed:
            autoencoder.enable_gradient_checkpointing()
        autoencoder.decode(autoencoder.encode(images)[0]).square().mean().backward()
        gradients.append([p.grad for p in autoencoder.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="leaves out its change of range"):
        make("tiny").enable_gradient_checkpointing()


def test_bfloat16_weights_give_float32_latents(kind, images):
    autoencoder = make(kind).to(torch.bfloat16)
    mean, std = autoencoder.encode(images)
    assert mean.dtype == std.dtype == autoencoder.decode(mean).dtype == torch.float32
    assert float(autoencoder.scale[0, 0]) == pytest.approx(float(make(kind).scale[0, 0]), rel=1e-2)


def test_pocket():
    autoencoder = build_autoencoder("ae-pocket")
    assert 0.8e6 < sum(p.numel() for p in autoencoder.parameters()) < 2.0e6
    mean, std = autoencoder.encode(torch.zeros(1, 3, 32, 32))
    assert mean.shape == std.shape == (1, 4, 8, 8)
    assert autoencoder.factor == 4
    same = build_autoencoder("ae-pocket")
    assert all(torch.equal(a, b) for a, b in zip(autoencoder.parameters(), same.parameters(), strict=True))


def taef2_weights() -> dict[str, torch.Tensor]:
    """Random ones of the published names and shapes, as far as these differ from diffusers'."""
    torch.manual_seed(0)
    state = {}
    for key, value in AutoencoderTiny(latent_channels=32).state_dict().items():
        part, _, place, rest = key.split(".", 3)
        state[f"{part}.{int(place) + (part == 'decoder')}.{rest}"] = 0.1 * torch.randn_like(value)
    for name in ("encoder.11", "encoder.12", "encoder.13", "decoder.3", "decoder.4", "decoder.5"):
        shapes = {"0.weight": (256, 64, 1, 1), "1.weight": (256,), "1.bias": (256,), "3.weight": (64, 256, 1, 1)}
        state |= {f"{name}.pool.{key}": torch.randn(shape) for key, shape in shapes.items()}
    return state


def test_taef2_is_the_tiny_autoencoder_with_a_branch_more():
    weights = taef2_weights()
    autoencoder = build_taef2(weights)
    plain = AutoencoderTiny(latent_channels=32)
    plain.load_state_dict(
        {f"{key.split('.')[0]}.layers.{int(key.split('.')[1]) - key.startswith('decoder')}.{key.split('.', 2)[2]}": value
         for key, value in weights.items() if ".pool." not in key}
    )  # fmt: skip
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    z = autoencoder.encode(x)[0]
    assert z.shape == (2, 32, 4, 4) and autoencoder.factor == 8 and autoencoder.decode(z).shape == x.shape
    assert (z - Autoencoder(plain).encode(x)[0]).abs().max() > 0.01, "the branch has a part in it"
    closed = build_taef2({key: 0 * value if key.endswith("pool.3.weight") else value for key, value in weights.items()})
    torch.testing.assert_close(closed.encode(x)[0], Autoencoder(plain).encode(x)[0])
    torch.testing.assert_close(closed.decode(z), Autoencoder(plain).decode(z))


@pytest.mark.parametrize(
    "change",
    [{"decoder.1.weight": torch.zeros(64, 16, 3, 3)}, {"decoder.40.weight": torch.zeros(1)}, {"conv_in.weight": torch.zeros(1)}],
)
def test_other_weights_are_not_taef2(change):
    with pytest.raises(ValueError, match="not the weights of TAEF2"):
        build_taef2(taef2_weights() | change)
    missing = taef2_weights()
    del missing["encoder.0.bias"]
    with pytest.raises(ValueError, match="not the weights of TAEF2"):
        build_taef2(missing)


@pytest.mark.reference
def test_real_tiny_autoencoder_on_photographs():
    """TAEF2 keeps Kodak 1 to 8 at 26.2 to 33.2 dB: a wrong range or scale on either side would cost most of it."""
    folder = os.environ.get("PERCEPTA_WEIGHTS")
    if not folder or not (Path(folder) / "taef2_fp16.safetensors").is_file():
        pytest.skip("PERCEPTA_WEIGHTS names no folder with taef2_fp16.safetensors")
    pack = Path(os.environ.get("PERCEPTA_DATA", Path(folder).parent / "data")) / "kodak24_webp.npz"
    if not pack.is_file():
        pytest.skip(f"no {pack}; PERCEPTA_DATA names the folder of the data packs")
    autoencoder = build_taef2(load_file(Path(folder) / "taef2_fp16.safetensors"))
    stored = np.load(pack)
    raw, ends = stored["webp"].tobytes(), stored["webp_offset"]
    ratios = []
    for k in range(8):
        image = np.asarray(Image.open(io.BytesIO(raw[ends[k] : ends[k + 1]])).convert("RGB"))
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            back = autoencoder.decode(autoencoder.encode(x)[0]).clamp(-1, 1)
        ratios.append(float(10 * torch.log10(4 / (back - x).square().mean())))
    assert min(ratios) == pytest.approx(26.2, abs=0.1), ratios
    assert max(ratios) == pytest.approx(33.2, abs=0.1), ratios
