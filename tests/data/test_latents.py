"""The latent cache: hits only what it was made from, resumes, notices damage, and streams the same bits from anywhere."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL

from percepta.data import BadImage, Stream, Transform, open_source
from percepta.data import latents as room
from percepta.data.latents import LatentStream, encode_latents, hash_module


class Vae(torch.nn.Module):
    """A real autoencoder of tiny size, counting the images it encodes."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=2,
                                       down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
        self.eval().requires_grad_(False)
        self.seen = 0
        self.register_buffer("scale", torch.tensor(0.7), persistent=False)

    def encode(self, x):
        self.seen += len(x)
        posterior = self.model.encode(x).latent_dist
        return posterior.mean * self.scale, posterior.std * self.scale


@pytest.fixture
def source(tmp_path, make):
    return open_source(make.folder(tmp_path / "images", 11, ("a", "b")))


TRANSFORM = Transform(16, flip=True)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(room, "ROWS", 4)
    monkeypatch.setattr(room, "BATCH", 3)


def test_a_second_look_is_a_hit_and_anything_else_a_miss(source, tmp_path, make):
    vae = Vae()
    first = encode_latents(source, vae, tmp_path / "cache", TRANSFORM)
    assert (first.hit, first.encoded, vae.seen) == (False, 11, 22)
    again = encode_latents(source, vae, tmp_path / "cache", TRANSFORM)
    assert again == first._replace(hit=True, encoded=0)
    assert vae.seen == 22
    for other in (
        Transform(16),
        Transform(16, "stretch", flip=True),
        Transform(12, flip=True),
        Transform(16, flip=True, filter="box"),
    ):
        assert not encode_latents(source, vae, tmp_path / "cache", other).hit
    assert not encode_latents(source, Vae(1), tmp_path / "cache", TRANSFORM).hit
    assert not encode_latents(source, vae, tmp_path / "cache", TRANSFORM, "float32").hit
    scaled = Vae()
    scaled.scale *= 2  # another scale makes other latents, though the weights are the same
    assert hash_module(scaled) != hash_module(vae) == hash_module(Vae())
    make.folder(tmp_path / "images", 1, ("a",), first=77)
    assert not encode_latents(open_source(tmp_path / "images"), vae, tmp_path / "cache", TRANSFORM).hit


def test_latents_are_the_encoder_s(source, tmp_path):
    vae = Vae()
    path = encode_latents(source, vae, tmp_path, TRANSFORM, "float32").path
    images = Stream(source, 16, 3, 5, flip=True)
    for (a, latents), (b, pixels) in zip(LatentStream(path, 3, 5, sample=False).batches(0, 4), images.batches(0, 4), strict=True):
        assert a == b
        assert torch.equal(latents.cond, pixels.cond)  # the same images, in the same order, flipped alike
        assert torch.allclose(latents.x0, vae.encode(pixels.x0)[0], atol=1e-5)


def test_noise_is_keyed_and_has_the_posterior_s_width(source, tmp_path):
    path = encode_latents(source, Vae(), tmp_path, TRANSFORM, "float32").path
    straight = list(LatentStream(path, 3, 6).batches(0, 5))
    for (a, x), (b, y) in zip(straight[2:], LatentStream(path, 3, 6).batches(2, 5), strict=True):
        assert a == b
        assert torch.equal(x.x0, y.x0)
    parts = [list(LatentStream(path, 3, 6, rank=r, world=4).batches(0, 5)) for r in range(4)]
    for step in range(5):
        assert torch.equal(straight[step][1].x0, torch.cat([part[step][1].x0 for part in parts]))
    assert [len(o) for o, _ in LatentStream(path, 3, 6).batches(total=8)] == [6, 2]
    stream = LatentStream(path, 3, 500)
    ordinals = range(500)
    mean = LatentStream(path, 3, 500, sample=False).rows(ordinals).x0
    std = torch.tensor([float(stream._shards[0]["std"].square().mean().sqrt())])
    assert ((stream.rows(ordinals).x0 - mean).square().mean().sqrt() / std - 1).abs() < 0.1


def test_an_interrupted_run_is_resumed(source, tmp_path):
    whole = encode_latents(source, Vae(), tmp_path / "whole", TRANSFORM)

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_latents(source, Vae(), tmp_path / "cut", TRANSFORM, progress=stop)
    path = tmp_path / "cut" / whole.path.name
    with pytest.raises(ValueError, match="is not a whole latent cache"):
        LatentStream(path, 0, 4)
    (path / "latents-000000004.safetensors").write_bytes(b"half a shard")
    vae = Vae()
    result = encode_latents(source, vae, tmp_path / "cut", TRANSFORM)
    assert (result.hit, result.encoded, vae.seen) == (False, 7, 14)
    manifests = [json.loads((p / "manifest.json").read_text()) for p in (path, whole.path)]
    assert manifests[0] == manifests[1]  # the shards' hashes too
    assert not [p for p in path.iterdir() if p.name.endswith(".tmp")]


def test_a_flipped_bit_is_found(source, tmp_path):
    path = encode_latents(source, Vae(), tmp_path, TRANSFORM).path
    shard = path / "latents-000000004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    for use in (lambda: LatentStream(path, 0, 4), lambda: encode_latents(source, Vae(), tmp_path, TRANSFORM)):
        with pytest.raises(ValueError, match=r"latents-000000004\.safetensors: has changed .* delete the folder"):
            use()


def test_bad_images_stop_or_are_kept_in_mind(source, tmp_path):
    bad = tmp_path / "images" / "b" / "001.png"
    bad.write_bytes(b"")
    source = open_source(tmp_path / "images")
    with pytest.raises(BadImage, match=r"001\.png: is empty"):
        encode_latents(source, Vae(), tmp_path / "cache", TRANSFORM)
    for hit in (False, True):
        result = encode_latents(source, Vae(), tmp_path / "cache", TRANSFORM, on_bad="skip")
        assert (result.hit, result.skipped) == (hit, {str(bad): "is empty (0 bytes)"})
    with pytest.raises(BadImage, match="made without 1 bad images"):
        encode_latents(source, Vae(), tmp_path / "cache", TRANSFORM)


def test_what_cannot_be_cached(source, tmp_path):
    with pytest.raises(ValueError, match="a random crop"):
        encode_latents(source, Vae(), tmp_path, Transform(16, "jitter"))
    with pytest.raises(ValueError, match="float16 or float32, got 'int8'"):
        encode_latents(source, Vae(), tmp_path, TRANSFORM, "int8")
    with pytest.raises(ValueError, match="must be a torch module"):
        encode_latents(source, SimpleNamespace(encode=lambda x: (x, x)), tmp_path, TRANSFORM)
    wild = Vae()
    wild.scale *= 1e9
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        encode_latents(source, wild, tmp_path, TRANSFORM)
