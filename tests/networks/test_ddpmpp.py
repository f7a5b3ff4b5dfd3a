import math

import pytest
import torch

from percepta.interop.travelling import travelling_source
from percepta.networks import adapt, build
from percepta.networks.ddpmpp import DDPMPP, Block, FromImage, SelfAttention, filtered
from percepta.networks.loading import load_model

SMALL = {"sample_size": 8, "model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attention_sizes": (8,)}


def small(**options) -> DDPMPP:
    torch.manual_seed(0)
    model = DDPMPP(**SMALL, **options).eval()
    for p in model.parameters():
        if float(p.detach().abs().max()) < 1e-3:
            torch.nn.init.normal_(p, std=0.1)
    return model


def test_blocks_keep_variance():
    """A sum of two unit signals scaled by 1/sqrt(2) is a unit signal: at first the branch is nearly silent, so the variance
    halves."""
    x, emb = torch.randn(8, 32, 16, 16), torch.randn(8, 64)
    block = Block(32, 32, 64, None, True, 0.0)
    torch.testing.assert_close(block(x, emb), x * 0.5, rtol=0, atol=1e-3)
    assert Block(32, 32, 64, "down", False, 0.0)(x, emb).shape == (8, 32, 8, 8)
    assert Block(32, 48, 64, "up", False, 0.0)(x, emb).shape == (8, 48, 32, 32)


def test_attention_is_softmax_of_scaled_products():
    layer = SelfAttention(8)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(2, 8, 3, 4)
    q, k, v = layer.qkv(layer.norm(x)).reshape(2, 3, 8, 12).unbind(1)
    weights = torch.einsum("bcq,bck->bqk", q / math.sqrt(8), k).softmax(-1)
    expected = layer.out(torch.einsum("bqk,bck->bcq", weights, v).reshape(2, 8, 3, 4))
    torch.testing.assert_close(layer(x), expected)


def test_the_null_label_is_a_row_of_zeros():
    model = small(num_classes=4)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([0.1, -1.0])
    with torch.no_grad():
        null = model(x, time, torch.tensor([4, 4]))
        model.label_in.weight.mul_(3)
        assert torch.equal(null, model(x, time, torch.tensor([4, 4]))), "no column of the label layer belongs to the null label"
        assert not torch.equal(null, model(x, time, torch.tensor([0, 1])))
        with pytest.raises(ValueError, match="has 4 classes: give class_labels, 4 for none"):
            model(x, time)


def test_augmentation_labels_through_the_adapter():
    network = adapt(small(num_classes=4, augment_dim=9))
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.1, -1.0]), torch.tensor([0, 1])
    augment = torch.randn(2, 9)
    with torch.no_grad():
        plain = network(x, time, labels)
        assert torch.equal(plain, network(x, time, {"class_labels": labels, "augment_labels": torch.zeros(2, 9)}))
        assert not torch.equal(plain, network(x, time, {"class_labels": labels, "augment_labels": augment}))
    dropped = network.drop_condition({"class_labels": labels, "augment_labels": augment}, torch.tensor([True, False]))
    assert dropped["class_labels"].tolist() == [4, 1]
    assert torch.equal(dropped["augment_labels"], augment), "how an image was augmented stays known"
    with pytest.raises(ValueError, match=r"\[2, ..., 9\], got \(2, 8\)"):
        network(x, time, {"class_labels": labels, "augment_labels": augment[:, :8]})


def test_attention_sits_where_the_paper_has_it():
    with torch.device("meta"):
        model = build("ddpmpp-32").model
    with_attention = [name for name, m in model.named_modules() if isinstance(m, SelfAttention)]
    down = [name for name in with_attention if name.startswith("down")]
    up = [name for name in with_attention if name.startswith("up")]
    assert (len(down), len(up), len(with_attention)) == (
        4,
        1,
        6,
    )  # four blocks at 16 x 16, the last one there on the way up, one in the middle


def test_dropout_acts_in_training_only():
    model = small()
    x, time = torch.randn(1, 3, 8, 8), torch.tensor([0.3])
    with torch.no_grad():
        assert torch.equal(model(x, time), model(x, time))
        model.train()
        assert not torch.equal(model(x, time), model(x, time))


# ---- NCSN++


def test_resampling_is_the_filter_1331_along_both_sides():
    """By hand: spread out with zeros between, or taken at every other place, and weighted by the outer product; nothing beyond the border."""
    x, taps = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    down, up = torch.zeros(2, 3, 2, 3, dtype=torch.float64), torch.zeros(2, 3, 8, 12, dtype=torch.float64)
    for a in range(4):
        for b in range(4):
            for i in range(2):
                for j in range(3):
                    row, column = 2 * i + a - 1, 2 * j + b - 1
                    if 0 <= row < 4 and 0 <= column < 6:
                        down[:, :, i, j] += taps[a] * taps[b] / 64 * x[:, :, row, column]
            for i in range(4):
                for j in range(6):
                    row, column = 2 * i + a - 1, 2 * j + b - 1
                    if 0 <= row < 8 and 0 <= column < 12:
                        up[:, :, row, column] += taps[a] * taps[b] / 16 * x[:, :, i, j]
    torch.testing.assert_close(filtered(x, "down"), down)
    torch.testing.assert_close(filtered(x, "up"), up)
    block = Block(4, 4, 8, "down", False, 0.0, fir=True)
    assert block(torch.ones(1, 4, 8, 8), torch.zeros(1, 8)).shape == (1, 4, 4, 4)


def test_a_convolution_of_the_image_is_one_of_the_image_that_was_filtered():
    """Both are linear and shift with the image, so their order is seen at the border alone."""
    layer = FromImage(3, 5)
    torch.nn.init.normal_(layer.conv.bias)
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(layer(x)[..., 1:-1, 1:-1], filtered(layer.conv(x), "down")[..., 1:-1, 1:-1])


def test_ncsnpp_reads_noise_and_image_and_keeps_its_frequencies(tmp_path):
    model = small(ncsn=True, num_classes=2, augment_dim=9)
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.1, -1.0]), torch.tensor([0, 2])
    with torch.no_grad():
        found = model(x, time, labels)
        assert found.shape == x.shape and not torch.equal(found, model(x, time + 0.1, labels))
        model.save_pretrained(tmp_path)
        assert torch.equal(load_model(tmp_path)(x, time, labels), found)
        for part in (model.from_image[0].conv.weight, model.frequencies):
            kept = part.clone()
            part.zero_()
            assert not torch.allclose(found, model(x, time, labels)), "each of them counts"
            part.copy_(kept)
        drawn = model.frequencies.clone()
        assert torch.equal(drawn.bfloat16().float(), drawn) and torch.equal(drawn.half().float(), drawn)
    assert len(model.from_image) == 1 and model.time_in.in_features == 32


def test_ncsnpp_travels_with_its_weights():
    model, code = small(ncsn=True), {}
    exec(compile(travelling_source(DDPMPP), "ddpmpp.py", "exec"), code)
    twin = code["DDPMPP"](**SMALL, ncsn=True).eval()
    twin.load_state_dict(model.state_dict())
    x, time = torch.randn(1, 3, 8, 8), torch.tensor([0.3])
    with torch.no_grad():
        assert torch.equal(twin(x, time), model(x, time))
