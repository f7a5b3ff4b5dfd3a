"""Tiny text pipelines of real parts, with random weights: Stable Diffusion 1 and 3 of a few thousand weights, made offline."""

import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

TOKENS, SIDE = 12, 16  # of a prompt; pixels


def shake(model, seed=3, scale=0.3):
    """Weights that are not zero anywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale / max(p[0].numel() if p.ndim > 1 else 10, 1) ** 0.5)
    return model.eval()


def tokenizer(folder: Path):
    """CLIP's tokenizer over single letters."""
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def clip(width, seed, projection=None):
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=TOKENS,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, **({} if projection is None else {"projection_dim": projection}),
    )  # fmt: skip
    cls = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return shake(cls(config), seed)


def t5(width):
    """A T5 encoder and its tokenizer over single letters."""
    import transformers

    letters = [(f"▁{c}", -1.0) for c in string.ascii_lowercase] + [(c, -2.0) for c in string.ascii_lowercase]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0), *letters]
    config = transformers.T5Config(vocab_size=len(vocabulary), d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return shake(transformers.T5EncoderModel(config)), transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)


def vae(**options):
    return shake(AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                               layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=SIDE, **options))  # fmt: skip


def unet(width, **options):
    return shake(UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 8), layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=width, norm_num_groups=4, attention_head_dim=4, **options,
    ))  # fmt: skip


def sd(folder: Path, scheduler=None) -> Path:
    """Stable Diffusion 1."""
    torch.manual_seed(0)
    scheduler = scheduler or DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
    StableDiffusionPipeline(
        vae(scaling_factor=0.5), clip(8, 1), tokenizer(folder.with_name("words")), unet(8), scheduler, None, None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sd3(folder: Path, with_t5: bool = False) -> Path:
    """Stable Diffusion 3, without its T5 unless asked for."""
    torch.manual_seed(0)
    encoder, words = t5(24) if with_t5 else (None, None)
    one, two = (tokenizer(folder.with_name(f"words{k}")) for k in (1, 2))
    transformer = shake(SD3Transformer2DModel(sample_size=SIDE // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
                                              num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=12,
                                              pos_embed_max_size=SIDE))  # fmt: skip
    StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(scaling_factor=0.5, shift_factor=0.1), clip(8, 1, 4), one, clip(16, 2, 8), two,
        encoder, words,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def sdxl(folder: Path) -> Path:
    """Stable Diffusion XL."""
    torch.manual_seed(0)
    one, two = (tokenizer(folder.with_name(f"words{k}")) for k in (1, 2))
    network = unet(24, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=8 + 6 * 4)
    StableDiffusionXLPipeline(
        vae(scaling_factor=0.5), clip(8, 1), clip(16, 2, 8), one, two, network,
        DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def captioned_images(folder: Path, count: int = 6) -> Path:
    """A folder of images with metadata.jsonl."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    lines = []
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": ("a red disc", "blue", "a star")[k % 3]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
