"""Converted weights compute what the published networks compute. The networks are written here a second time, as functions of their weights."""

import math

import pytest
import torch
import torch.nn.functional as F

from percepta.formulation import Denoiser
from percepta.interop import Foreign, convert, export_pipeline, load_pipeline
from percepta.path import Cosine, LinearBeta


def sinusoid(t, width):
    half = width // 2
    angles = t.float()[:, None] * torch.exp(
        -math.log(10000) * torch.arange(half, dtype=torch.float32) / half
    )  # float32, as published
    return torch.cat([angles.cos(), angles.sin()], 1)


@pytest.fixture
def double():
    """Networks of float64: what is left of a difference then is no rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- the U-Net of improved-diffusion and guided-diffusion --------------------------------------------------------------------------------


class OpenAiUNet:
    """Random weights under the published names, and the forward pass that they belong to."""

    def __init__(self, mult=(1, 2), blocks=1, attention=(False, True), classes=None, updown=False, scale_shift=True, learn_sigma=True, *,
                 heads=2, head_channels=None, new_order=False):  # fmt: skip
        self.mult, self.blocks, self.attention, self.updown, self.scale_shift = mult, blocks, attention, updown, scale_shift
        self.heads, self.head_channels, self.new_order = heads, head_channels, new_order
        self.w, self.generator = {}, torch.Generator().manual_seed(5)
        base, self.emb = 32, 128
        self.linear("time_embed.0", base, self.emb)
        self.linear("time_embed.2", self.emb, self.emb)
        if classes:
            self.w["label_emb.weight"] = self.rand(classes, self.emb)
        self.conv("input_blocks.0.0", 3, base)
        skips, c, i = [base], base, 1
        for level, m in enumerate(mult):
            for _ in range(blocks):
                self.res(f"input_blocks.{i}.0", c, m * base)
                c = m * base
                if attention[level]:
                    self.attn(f"input_blocks.{i}.1", c)
                skips.append(c)
                i += 1
            if level < len(mult) - 1:
                self.res(f"input_blocks.{i}.0", c, c) if updown else self.conv(f"input_blocks.{i}.0.op", c, c)
                skips.append(c)
                i += 1
        self.res("middle_block.0", c, c)
        self.attn("middle_block.1", c)
        self.res("middle_block.2", c, c)
        i = 0
        for level in reversed(range(len(mult))):
            for j in range(blocks + 1):
                self.res(f"output_blocks.{i}.0", c + skips.pop(), mult[level] * base)
                c = mult[level] * base
                if attention[level]:
                    self.attn(f"output_blocks.{i}.1", c)
                if level and j == blocks:
                    name = f"output_blocks.{i}.{1 + attention[level]}"
                    self.res(name, c, c) if updown else self.conv(f"{name}.conv", c, c)
                i += 1
        self.norm("out.0", c)
        self.conv("out.2", c, 6 if learn_sigma else 3)

    def rand(self, *shape):
        return torch.randn(shape, generator=self.generator) * (0.7 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1)

    def linear(self, name, a, b):
        self.w[f"{name}.weight"], self.w[f"{name}.bias"] = self.rand(b, a), self.rand(b)

    def conv(self, name, a, b, k=3):
        self.w[f"{name}.weight"], self.w[f"{name}.bias"] = self.rand(b, a, k, k), self.rand(b)

    def norm(self, name, c):
        self.w[f"{name}.weight"], self.w[f"{name}.bias"] = 1 + self.rand(c), self.rand(c)

    def res(self, name, a, b):
        self.norm(f"{name}.in_layers.0", a)
        self.conv(f"{name}.in_layers.2", a, b)
        self.linear(f"{name}.emb_layers.1", self.emb, 2 * b if self.scale_shift else b)
        self.norm(f"{name}.out_layers.0", b)
        self.conv(f"{name}.out_layers.3", b, b)
        if a != b:
            self.conv(f"{name}.skip_connection", a, b, 1)

    def attn(self, name, c):
        self.norm(f"{name}.norm", c)
        for part, out in (("qkv", 3 * c), ("proj_out", c)):
            self.w[f"{name}.{part}.weight"], self.w[f"{name}.{part}.bias"] = self.rand(out, c, 1) * 3, self.rand(out)

    def do_conv(self, name, x, stride=1):
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def do_norm(self, name, x):
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def do_linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def do_res(self, name, x, emb, move=lambda x: x):
        h = self.do_conv(f"{name}.in_layers.2", move(F.silu(self.do_norm(f"{name}.in_layers.0", x))))
        e = self.do_linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, 1)
            h = self.do_norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.do_norm(f"{name}.out_layers.0", h + e)
        skip = move(x)
        if f"{name}.skip_connection.weight" in self.w:
            skip = self.do_conv(f"{name}.skip_connection", skip)
        return skip + self.do_conv(f"{name}.out_layers.3", F.silu(h))

    def do_attn(self, name, x):
        b, c, _h, _w = x.shape
        heads = self.heads if self.head_channels is None else c // self.head_channels
        qkv = F.conv1d(self.do_norm(f"{name}.norm", x).reshape(b, c, -1), self.w[f"{name}.qkv.weight"], self.w[f"{name}.qkv.bias"])
        if self.new_order:
            q, k, v = (part.reshape(b * heads, c // heads, -1) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(b * heads, 3 * c // heads, -1).chunk(3, 1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(c // heads), -1)
        mixed = torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, -1)
        return x + F.conv1d(mixed, self.w[f"{name}.proj_out.weight"], self.w[f"{name}.proj_out.bias"]).reshape(x.shape)

    def __call__(self, x, t, y=None):
        emb = self.do_linear("time_embed.2", F.silu(self.do_linear("time_embed.0", sinusoid(t, 32).to(x))))
        if y is not None:
            emb = emb + self.w["label_emb.weight"][y]
        h = self.do_conv("input_blocks.0.0", x)
        kept, i = [h], 1
        for level, attention in enumerate(self.attention):
            for _ in range(self.blocks):
                h = self.do_res(f"input_blocks.{i}.0", h, emb)
                h = self.do_attn(f"input_blocks.{i}.1", h) if attention else h
                kept.append(h)
                i += 1
            if level < len(self.mult) - 1:
                name = f"input_blocks.{i}.0"
                h = self.do_res(name, h, emb, lambda x: F.avg_pool2d(x, 2)) if self.updown else self.do_conv(f"{name}.op", h, 2)
                kept.append(h)
                i += 1
        h = self.do_res("middle_block.2", self.do_attn("middle_block.1", self.do_res("middle_block.0", h, emb)), emb)

        def double(x):
            return F.interpolate(x, scale_factor=2.0, mode="nearest")

        i = 0
        for level in reversed(range(len(self.mult))):
            for j in range(self.blocks + 1):
                h = self.do_res(f"output_blocks.{i}.0", torch.cat([h, kept.pop()], 1), emb)
                h = self.do_attn(f"output_blocks.{i}.1", h) if self.attention[level] else h
                if level and j == self.blocks:
                    name = f"output_blocks.{i}.{1 + self.attention[level]}"
                    h = self.do_res(name, h, emb, double) if self.updown else self.do_conv(f"{name}.conv", double(h))
                i += 1
        return self.do_conv("out.2", F.silu(self.do_norm("out.0", h)))


UNETS = {
    "improved-cifar": ({"mult": (1, 2, 2), "blocks": 2, "attention": (False, True, True)}, "improved-diffusion", {"num_heads": 2}),
    "improved-widths": ({"mult": (1, 2, 3), "attention": (False, True, True), "heads": 4}, "improved-diffusion", {"num_heads": 4}),
    "plain-add": ({"scale_shift": False, "learn_sigma": False, "attention": (False, False)}, "improved-diffusion", {"num_heads": 2}),
    "guided-classes": ({"mult": (1, 2, 3), "attention": (False, True, True), "classes": 5, "updown": True, "head_channels": 16}, "guided-diffusion",
                       {"num_head_channels": 16}),
    "guided-new-order": ({"attention": (True, True), "updown": True, "new_order": True, "heads": 4}, "guided-diffusion",
                         {"num_heads": 4, "new_attention_order": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNETS)
def test_unets_compute_the_same(name, double):
    options, family, told = UNETS[name]
    reference = OpenAiUNet(**options)
    network, formulation = convert(reference.w, family, Foreign(size=16, **told))
    network.double()
    reference.w = {k: v.float().double() for k, v in reference.w.items()}
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 871.0])
    y = torch.tensor([4, 1]) if options.get("classes") else None
    with torch.no_grad():
        wanted, got = reference(x, t, y), network(x, t, y)
    assert wanted.std() > 0.05
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-6)
    assert formulation.path == LinearBeta()
    assert network.num_classes == options.get("classes")


def test_the_order_of_attention_matters():
    """The test above would notice a wrong order: reading new-order weights as old ones gives another network."""
    reference = OpenAiUNet(new_order=True)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([100.0])
    network, _ = convert(reference.w, "guided-diffusion", Foreign(size=16, num_heads=2))
    with torch.no_grad():
        assert (reference(x, t) - network(x, t)).abs().max() > 1e-3


def test_rescaled_times_and_heads_survive_an_export(tmp_path):
    """improved-diffusion at 4000 steps embeds k/4, with 4 heads at two widths: neither is in UNet2DModel's configuration."""
    reference = OpenAiUNet(mult=(1, 2, 3), attention=(False, True, True), heads=4)
    network, formulation = convert(reference.w, "improved-diffusion", Foreign(size=16, num_heads=4, schedule="cosine", steps=4000))
    assert formulation.path == Cosine(4000)
    out = export_pipeline(tmp_path / "out", Denoiser(network, formulation))
    from diffusers import DiffusionPipeline

    foreign = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    loaded = load_pipeline(out).denoiser.network.double()
    foreign.unet.double()
    reference.w = {k: v.double() for k, v in reference.w.items()}
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([2000.0, 2000.0])
    with torch.no_grad():
        wanted = reference(x, t / 4)
        torch.testing.assert_close(loaded(x, t), wanted, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(foreign._predict(x, torch.tensor(2000), None), wanted[:, :3], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda w: w, {"size": 16}, "give num_heads"),
        (lambda w: w, {"num_heads": 2}, "image size"),
        (lambda w: w, {"size": 15, "num_heads": 2}, "multiple of 2"),
        (lambda w: w, {"size": 16, "num_heads": 3}, "does not split"),
        (lambda w: w, {"size": 16, "num_heads": 2, "schedule": "sigmoid"}, "unknown schedule"),
        (lambda w: w | {"extra.weight": torch.zeros(1)}, {"size": 16, "num_heads": 2}, "extra.weight"),
        (lambda w: {k: v for k, v in w.items() if "middle_block.2" not in k}, {"size": 16, "num_heads": 2}, "is missing"),
        (lambda w: {"a": torch.zeros(1)}, {"size": 16, "num_heads": 2}, "these are not the weights"),
        (
            lambda w: {k: v for k, v in w.items() if "output_blocks.1" not in k},
            {"size": 16, "num_heads": 2},
            "no U-Net",
        ),
    ],
)
def test_wrong_unets_are_refused(change, told, message):
    with pytest.raises(ValueError, match=message):
        convert(change(OpenAiUNet().w), "improved-diffusion", Foreign(**told))


# --- DiT -----------------------------------------------------------------------------------------------------------------------------------


def grid_table(width, side):
    """Half of the width for the column, half for the row; each half is sines, then cosines."""

    def axis(positions):
        angles = positions.reshape(-1, 1).double() / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        return torch.cat([angles.sin(), angles.cos()], 1)

    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([axis(columns), axis(rows)], 1).float()[None]


def dit_weights(width=16, depth=3, patch=2, side=4, classes=7, channels=4, learn_sigma=True):
    generator = torch.Generator().manual_seed(2)
    shapes = {"x_embedder.proj": (width, channels, patch, patch), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
              "final_layer.adaLN_modulation.1": (2 * width, width),
              "final_layer.linear": (patch**2 * channels * (2 if learn_sigma else 1), width)}  # fmt: skip
    for i in range(depth):
        shapes |= {f"blocks.{i}.attn.qkv": (3 * width, width), f"blocks.{i}.attn.proj": (width, width), f"blocks.{i}.mlp.fc1": (4 * width, width),
                   f"blocks.{i}.mlp.fc2": (width, 4 * width), f"blocks.{i}.adaLN_modulation.1": (6 * width, width)}  # fmt: skip
    w = {
        "y_embedder.embedding_table.weight": torch.randn(classes + 1, width, generator=generator),
        "pos_embed": grid_table(width, side),
    }
    for name, shape in shapes.items():
        w[f"{name}.weight"] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        w[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return w


def dit_forward(w, x, t, y, heads, patch=2):
    def linear(name, x):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulated(x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], patch).flatten(2).transpose(1, 2) + w["pos_embed"]
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", sinusoid(t, 256)))) + w["y_embedder.embedding_table.weight"][y]
    b, n, d = h.shape
    for i in range(sum(name.endswith("attn.proj.weight") for name in w)):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", F.silu(c)).chunk(6, 1)
        q, k, v = (
            linear(f"blocks.{i}.attn.qkv", modulated(h, shift1, scale1)).reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(d // heads), -1) @ v
        h = h + gate1[:, None] * linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).reshape(b, n, d))
        inner = F.gelu(linear(f"blocks.{i}.mlp.fc1", modulated(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(f"blocks.{i}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c)).chunk(2, 1)
    out = linear("final_layer.linear", modulated(h, shift, scale))
    side = math.isqrt(n)
    return out.reshape(b, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, side * patch, side * patch)


@pytest.mark.parametrize(
    ("options", "heads"),
    [({}, 2), ({"depth": 1, "learn_sigma": False, "width": 24, "side": 5}, 3), ({"width": 384, "depth": 1}, None)],
)
def test_dit_computes_the_same(options, heads):
    w = dit_weights(**options)
    network, formulation = convert(w, "dit", Foreign(num_heads=heads))
    side = 2 * options.get("side", 4)
    x, t, y = torch.randn(3, 4, side, side), torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 6, 7])
    with torch.no_grad():
        wanted, got = dit_forward(w, x, t, y, heads or 6), network(x, t, y)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    assert (network.num_classes, formulation.path) == (7, LinearBeta())


def test_dit_survives_an_export(tmp_path):
    """The frequencies of the published network are not those of diffusers' class; the export keeps the published ones."""
    from diffusers import AutoencoderKL, DiffusionPipeline

    w = dit_weights(classes=1000)
    network, formulation = convert({f"ema.{k}": v for k, v in w.items()}, "dit", Foreign(num_heads=2))
    vae = AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4)
    out = export_pipeline(tmp_path / "out", Denoiser(network, formulation), vae=vae)
    pipe = DiffusionPipeline.from_pretrained(out, trust_remote_code=True)
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([5, 1000])
    with torch.no_grad():
        wanted = dit_forward(w, x, torch.tensor([700.0, 700.0]), y, 2)
        torch.testing.assert_close(pipe._predict(x, torch.tensor(700), y), wanted[:, :4], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            load_pipeline(out).denoiser.network(x, torch.tensor([700.0, 700.0]), y), wanted, atol=1e-5, rtol=1e-5
        )


def test_wrong_dits_are_refused():
    with pytest.raises(ValueError, match="give num_heads"):
        convert(dit_weights(), "dit")
    with pytest.raises(ValueError, match="position table"):
        convert(dit_weights() | {"pos_embed": torch.randn(1, 16, 16)}, "dit", Foreign(num_heads=2))
    with pytest.raises(ValueError, match="unknown family"):
        convert(dit_weights(), "sit")
