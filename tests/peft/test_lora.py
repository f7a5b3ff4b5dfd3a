"""LoRA is the identity at first, moves what its equation says, merges into a plain model, and leaves everything as it was."""

import pytest
import torch

from percepta.peft import Lora, attach, digest


def moved(made, **asked):
    """A network with an adapter that does something."""
    adapter = attach(Lora(**asked), made.network, "base", 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trained(made).values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return adapter


def trained(made):
    return {name: p for name, p in made.model.named_parameters() if p.requires_grad}


def test_nothing_changes_to_the_bit_until_it_is_trained(made):
    before = made()
    adapter = attach(Lora(), made.network, "base", 1)
    assert torch.equal(made(), before)
    names = trained(made)
    assert names
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in names)
    assert len(names) == 2 * len(adapter.facts()["layers"])
    assert adapter.trained == sum(p.numel() for p in names.values())
    assert adapter.base.parameters == sum(p.numel() for p in made.model.parameters()) - adapter.trained


def test_first_weights_follow_from_the_seed_and_no_other_number_is_drawn(make):
    def weights(seed):
        made = make("unet")
        before = torch.random.get_rng_state()
        attach(Lora(), made.network, "base", seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        return torch.cat([p.flatten() for p in trained(made).values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def full_gradients(make, kind, layers):
    """dL/dW of the layers' weights, all weights trained."""
    made = make(kind)
    made.network.double()
    made().square().sum().backward()
    return {name: made.model.get_submodule(name).weight.grad.flatten(1) for name in layers}


@pytest.mark.parametrize("kind", ["unet", "dit"])
@pytest.mark.parametrize("alpha", [None, 6])
def test_the_first_gradient_is_that_of_all_weights_seen_through_the_adapter(make, kind, alpha):
    """W + (alpha/r) B A at B = 0:   dL/dB = (alpha/r) dL/dW A^T  and  dL/dA = 0;  a convolution's weights as matrices."""
    made = make(kind)
    adapter = attach(Lora(rank=3, alpha=alpha), made.network, "base", 1)
    made.network.double()
    made().square().sum().backward()
    layers = adapter.facts()["layers"]
    whole = full_gradients(make, kind, layers)
    assert len(layers) >= 10
    for name in layers:
        layer = made.model.get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = (alpha or 3) / 3 * whole[name] @ a.detach().flatten(1).T
        assert torch.allclose(b.grad.flatten(1), expected, rtol=1e-9, atol=1e-12)
        assert not a.grad.any()


def test_merged_is_a_plain_model_that_gives_the_same(made):
    plain, before = {name: type(module) for name, module in made.model.named_modules()}, made()
    adapter = moved(made)
    live, weights = made(), {k: v.clone() for k, v in made.network.state_dict().items()}
    assert (live - before).abs().max() > 1e-3
    with adapter.merged():
        assert {name: type(module) for name, module in made.model.named_modules()} == plain
        assert torch.allclose(made(), live, atol=1e-5)
    now = made.network.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[k], v) for k, v in weights.items())
    assert torch.equal(made(), live)


def test_merged_ends_well_when_its_block_does_not(make):
    made = make("unet")
    adapter = moved(made)
    live = made()
    with pytest.raises(RuntimeError, match="disk"), adapter.merged():
        raise RuntimeError("disk full")
    assert torch.equal(made(), live)
    made().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trained(made).values())


def test_alpha_is_how_often_an_adapter_counts(make):
    def change(alpha):
        made = make("dit")
        name = "transformer_blocks.0.attn1.to_q"
        before = made.model.get_submodule(name).weight.detach().clone()
        with moved(made, rank=4, alpha=alpha, targets=(name,)).merged():
            return made.model.get_submodule(name).weight.detach() - before

    assert torch.allclose(change(8), 2 * change(4), atol=1e-6)
    assert torch.allclose(change(None), change(4), atol=1e-7)
    assert int(torch.linalg.matrix_rank(change(4), rtol=1e-3)) == 4


def test_the_same_adapter_has_the_same_files(make, tmp_path):
    saved = []
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        moved(make("unet")).save(tmp_path / str(k))
        saved.append({p.name: p.read_bytes() for p in (tmp_path / str(k)).iterdir()})
    assert set(saved[0]) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert saved[0] == saved[1]


def test_the_base_is_known_by_its_weights(make, tmp_path):
    made = make("unet")
    first = digest(made.model)
    made.model.save_pretrained(tmp_path)
    assert digest(type(made.model).from_pretrained(tmp_path)) == first
    assert attach(Lora(), made.network, "base", 1).base.sha256 == first
    with torch.no_grad():
        other = make("unet").model
        other.conv_out.bias[0] += 1e-6
    assert digest(other) != first
