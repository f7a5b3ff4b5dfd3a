import math

import pytest
import torch

from percepta.networks import adapt, build
from percepta.networks.ddpmpp import DDPMPP, Block, SelfAttention

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
