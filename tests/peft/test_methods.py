"""Every method: what it trains, that it starts where the base is, that it moves the network, folds, and comes back from its files."""

import copy
import json
import re
from functools import cache

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file

from percepta.networks import PRESETS, adapt, build
from percepta.networks.classes import class_table, new_classes
from percepta.networks.ddpmpp import DDPMPP
from percepta.networks.presets import Data
from percepta.peft import AdaptFormer, BitFit, DiffFit, Lora, Vpt, attach, digest, load_adapter
from percepta.peft.adapter import plain_name
from percepta.peft.inplace import Scaled

ALL = {
    "bitfit": BitFit(),
    "diffit": DiffFit(),
    "lora": Lora(4),
    "dora": Lora(4, dora=True),
    "vpt": Vpt(3),
    "adaptformer": AdaptFormer(4),
}
FOLD = [name for name, peft in ALL.items() if peft.folds]
TRANSFORMERS = ("dit", "mmdit", "condition")


def trained(model):
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def shake(model, by=0.1):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in trained(model).values():
            p.add_(torch.randn(p.shape, generator=generator) * by)


def fits(method, made):
    return ALL[method].folds or any(
        isinstance(m, torch.nn.Module) and "Transformer" in type(m).__name__ for m in made.model.modules()
    )


@pytest.mark.parametrize("method", ALL)
def test_a_fresh_adapter_changes_nothing_and_a_moved_one_does(method, made):
    if not fits(method, made):
        with pytest.raises(ValueError, match=f"--peft {method} is for networks with transformer blocks .* fit every network"):
            attach(ALL[method], made.network, "base", 1)
        return
    before = made()
    adapter = attach(ALL[method], made.network, "base", 1)
    fresh = made()
    if method == "vpt":
        assert 0 < (fresh - before).abs().mean() < before.abs().mean()
    elif method == "dora":
        assert torch.allclose(fresh, before, atol=1e-5)
    else:
        assert torch.equal(fresh, before)
    fresh.square().sum().backward()
    idle = [name for name, p in trained(made.model).items() if p.grad is None]
    assert not idle, idle
    assert all(p.grad is None for p in made.model.parameters() if not p.requires_grad)
    shake(made.model)
    assert (made() - fresh).abs().max() > 1e-3
    assert adapter.fraction == adapter.trained / adapter.base.parameters


@pytest.mark.parametrize("method", FOLD)
def test_folded_is_a_plain_model_that_gives_the_same(method, made):
    plain = {name: type(module) for name, module in made.model.named_modules()}
    names = set(made.model.state_dict())
    adapter = attach(ALL[method], made.network, "base", 1)
    shake(made.model)
    live, weights = made(), {k: v.clone() for k, v in made.model.state_dict().items()}
    with adapter.merged():
        assert {name: type(module) for name, module in made.model.named_modules()} == plain
        assert set(made.model.state_dict()) == names
        assert torch.allclose(made(), live, atol=2e-5)
    now = made.model.state_dict()
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[k], v) for k, v in weights.items())
    assert torch.equal(made(), live)


@pytest.mark.parametrize("method", ["vpt", "adaptformer"])
def test_what_does_not_fold_says_so(method, make):
    made = make("dit")
    adapter = attach(ALL[method], made.network, "base", 1)
    with pytest.raises(ValueError, match=f"what {method} adds cannot be folded .* --adapter"), adapter.merged():
        pass


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("kind", ["dit", "mmdit", "unet"])
def test_an_adapter_comes_back_from_its_files(method, kind, make, tmp_path):
    made = make(kind)
    if not fits(method, made):
        return
    adapter = attach(ALL[method], made.network, "base", 1)
    shake(made.model)
    adapter.save(tmp_path)
    again = make(kind)
    found = load_adapter(again.network, tmp_path)
    assert torch.equal(again(), made())
    assert (found.base, found.peft) == (adapter.base, adapter.peft)
    assert (tmp_path / "adapter_config.json").is_file()
    held = sum(x.numel() for x in load_file(tmp_path / "adapter_model.safetensors").values())
    assert held == adapter.trained
    other = make(kind)
    with torch.no_grad():
        next(other.model.parameters()).add_(1e-4)
    with pytest.raises(ValueError, match="is an adapter for base .* give the base that it was trained on"):
        load_adapter(other.network, tmp_path)


def test_bitfit_trains_biases_and_no_more(made):
    attach(BitFit(), made.network, "base", 1)
    every = dict(made.model.named_parameters())
    assert set(trained(made.model)) == {name for name in every if name.endswith(".bias")}


def test_diffit_trains_biases_norms_and_a_gamma_behind_attention_and_mlps(make):
    ends = {
        "dit": {"attn1.to_out.0", "ff.net.2"},
        "mmdit": {"attn.to_out.0", "attn.to_add_out", "ff.net.2", "ff_context.net.2"},
        "unet": {"to_out.0", "conv2"},
        "condition": {"attn1.to_out.0", "attn2.to_out.0", "ff.net.2"},
        "ddpmpp": {"attention.out", "conv1"},
    }
    for kind, wanted in ends.items():
        made = make(kind)
        norms = {n for n, m in made.model.named_modules() if isinstance(m, torch.nn.GroupNorm | torch.nn.LayerNorm)}
        attach(DiffFit(), made.network, "base", 1)
        names = set(trained(made.model))
        gammas = {name.removesuffix(".gamma") for name in names if name.endswith(".gamma")}
        assert all(any(name.endswith(end) for end in wanted) for name in gammas), kind
        assert {end for end in wanted if any(name.endswith(end) for name in gammas)} == wanted
        rest = {name for name in names if not name.endswith((".bias", ".gamma"))}
        assert {name.removesuffix(".weight") for name in rest} <= norms
        assert bool(rest) == (kind not in ("dit", "mmdit"))  # adaLN's norms have no weights


def test_gamma_is_one_at_first_and_multiplies_the_output():
    layer = torch.nn.Conv2d(2, 3, 3)
    scaled, x = Scaled(layer), torch.randn(1, 2, 5, 5)
    assert torch.equal(scaled(x), layer(x))
    with torch.no_grad():
        scaled.gamma.copy_(torch.tensor([1.0, 2.0, 0.0]))
    assert torch.allclose(scaled(x), layer(x) * torch.tensor([1.0, 2.0, 0.0])[:, None, None])


def test_a_bottleneck_is_a_tenth_of_what_its_layers_say(make):
    made = make("dit")
    ff = made.model.transformer_blocks[0].ff
    attach(AdaptFormer(4), made.network, "base", 1)
    shake(made.model)
    beside, x = made.model.transformer_blocks[0].ff, torch.randn(2, 5, 16)
    small = torch.relu(x @ beside.down.weight.T + beside.down.bias) @ beside.up.weight.T + beside.up.bias
    assert torch.allclose(beside(x), ff(x) + 0.1 * small, atol=1e-6)


def test_prompts_are_seen_by_the_tokens_and_leave_no_token(make):
    made = make("dit")
    block = made.model.transformer_blocks[0]
    attach(Vpt(3), made.network, "base", 1)
    prompted = made.model.transformer_blocks[0]
    x, call = torch.randn(2, 16, 16), {"timestep": made.time, "class_labels": torch.zeros(2, dtype=torch.long)}
    found = prompted(x, **call)
    whole = block(torch.cat([prompted.prompts.expand(2, 3, 16), x], 1), **call)
    assert torch.equal(found, whole[:, 3:])
    assert sum("prompts" in name for name in trained(made.model)) == 2  # each block has its own


# ---- counts


CLASSES, WIDTH = 101, 1152  # Food-101, the first set of DiffFit's table 1
PUBLISHED = {"bitfit": 0.61, "lora": 1.15, "adaptformer": 4.28}  # millions, DiffFit's table 1


@cache
def largest():
    """DiT-XL/2 without its values."""
    data = Data(4, 32, CLASSES, True)
    with torch.device("meta"):
        return DiTTransformer2DModel(**PRESETS["dit-xl-2"].config(data))


def xl(peft):
    with torch.device("meta"):
        return attach(peft, adapt(copy.deepcopy(largest())), "base", 1, table=True, sha256="none")


def test_dit_xl_has_the_published_number_of_weights():
    """673.8 M: one embedding of time and class for all blocks."""
    adapter = xl(BitFit())
    assert adapter.base.parameters == 673_799_072
    assert round(adapter.base.parameters / 1e6, 1) == 673.8


@pytest.mark.parametrize(
    ("peft", "count", "percent"),
    [
        (BitFit(), 607_136, 0.09),
        (AdaptFormer(64), 28 * (2 * 64 * WIDTH + 64 + WIDTH) + 102 * WIDTH, 0.64),
        (DiffFit(), 607_136 + 28 * 2 * WIDTH, 0.1),  # 0.12 published: see docs/peft.md
        (Vpt(84), 28 * 84 * WIDTH + 102 * WIDTH, 0.42),
        (Vpt(50), 28 * 50 * WIDTH + 102 * WIDTH, 0.26),
        (Lora(8, targets=("to_q", "to_v")), 28 * 2 * 8 * 2 * WIDTH + 102 * WIDTH, 0.17),
        (Lora(8, targets=("to_q", "to_k", "to_v")), 28 * 3 * 8 * 2 * WIDTH + 102 * WIDTH, 0.25),
    ],
    ids=["bitfit", "adaptformer", "diffit", "vpt-84", "vpt-50", "lora-qv", "lora-qkv"],
)
def test_what_trains_in_dit_xl(peft, count, percent):
    adapter = xl(peft)
    assert adapter.trained == count
    assert round(100 * adapter.fraction, 2) == percent


def test_published_counts_are_ours():
    """LoRA's are of one layer for q, k and v together: A once, B three times as long, as many as two layers of the same width have."""
    fused = 28 * 8 * (WIDTH + 3 * WIDTH) + 102 * WIDTH
    assert xl(Lora(8, targets=("to_q", "to_v"))).trained == fused
    found = {"bitfit": xl(BitFit()).trained, "lora": fused, "adaptformer": xl(AdaptFormer(64)).trained}
    assert {name: round(n / 1e6, 2) for name, n in found.items()} == PUBLISHED


# ---- shared embeddings and new classes


def dit(classes=3):
    torch.manual_seed(0)
    network = build("dit-pocket", channels=3, size=8, num_classes=classes, overrides={"num_layers": 3, "attention_head_dim": 4})
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return network


def published(network):
    """All blocks with the first one's embedding, as converted weights have them."""
    first, *rest = network.model.transformer_blocks
    for block in rest:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return network


def seen(network, labels):
    x = torch.randn(len(labels), 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return network(x, torch.full((len(labels),), 5.0), torch.tensor(labels))


def test_blocks_that_hold_one_embedding_train_one_and_are_saved_with_a_copy_each(tmp_path):
    network = published(dit())
    before = seen(network, [0, 3])
    adapter = attach(BitFit(), network, "base", 1, table=True)
    assert torch.equal(seen(network, [0, 3]), before)
    assert adapter.table == ("transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",)
    tables = {id(block.norm1.emb.class_embedder.embedding_table.weight) for block in network.model.transformer_blocks}
    assert len(tables) == 1
    shake(network.model)
    with adapter.merged():
        network.save_pretrained(tmp_path)
        again = adapt(type(network.model).from_pretrained(tmp_path))
    assert torch.allclose(seen(again, [0, 3]), seen(network, [0, 3]), atol=1e-6)
    apart = attach(BitFit(), dit(), "base", 1, table=True)
    assert len(apart.table) == 3


NETWORKS = {
    "dit": lambda classes: dit(classes),
    "mmdit": lambda classes: build("mmdit-pocket", channels=3, size=8, num_classes=classes, overrides={"num_layers": 1}),
    "unet": lambda classes: build("unet-pocket", channels=3, size=8, num_classes=classes),
    "ddpmpp": lambda classes: build("ddpmpp-32", channels=3, size=8, num_classes=classes,
                                    overrides={"model_channels": 16, "channel_mult": (1,), "num_blocks": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("had", [None, 3])
def test_a_new_table_has_the_null_label_of_the_old_one_at_its_end(kind, had, tmp_path):
    network = NETWORKS[kind](had).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02)
    x, time = torch.randn(2, 3, 8, 8), torch.full((2,), 5.0)
    before = network(x, time, network.null_condition(2))
    new_classes(network, 5, 7)
    assert (network.num_classes, network.reads.null_label) == (5, True)
    null = network.null_condition(2)
    assert null.tolist() == [5, 5]
    assert torch.equal(network.drop_condition(torch.tensor([1, 2]), torch.tensor([True, False])), torch.tensor([5, 2]))
    assert torch.allclose(network(x, time, null), before, atol=1e-6)
    assert all(5 in shape or 6 in shape for shape in (tuple(p.shape) for p in class_table(network.model).values()))
    network.save_pretrained(tmp_path)
    again = adapt(type(network.model).from_pretrained(tmp_path)).eval()
    labels = torch.tensor([0, 4])
    assert again.num_classes == 5
    assert torch.allclose(again(x, time, labels), network(x, time, labels), atol=1e-6)
    with pytest.raises(ValueError, match="labels must lie in 0 .. 4"):
        network(x, time, torch.tensor([0, 6]))


def test_an_adapter_with_new_classes_comes_back(tmp_path):
    from percepta.peft import digest

    for name, peft in {"diffit": DiffFit(), "lora": Lora(2)}.items():
        network = published(dit())
        sha256 = digest(network.model)
        new_classes(network, 5, 7)
        adapter = attach(peft, network, "base", 1, table=True, renewed=True, sha256=sha256)
        shake(network.model)
        (tmp_path / name).mkdir()
        adapter.save(tmp_path / name)
        again = published(dit())
        found = load_adapter(again, tmp_path / name)
        assert again.num_classes == 5
        assert torch.equal(seen(again, [4, 5]), seen(network, [4, 5]))
        assert found.facts() == adapter.facts()
        assert found.facts()["class_table"] == "new"
    assert (tmp_path / "lora" / "class_table.safetensors").is_file()
    assert json.loads((tmp_path / "diffit" / "adapter_config.json").read_text())["new_classes"] == 5


def test_networks_without_labels_are_told_so(make):
    with pytest.raises(ValueError, match="told encoder_hidden_states has no class table"):
        new_classes(make("condition").network, 5, 0)
    with pytest.raises(ValueError, match="one class, .* --conditional no"):
        new_classes(make("dit").network, 1, 0)


@pytest.mark.parametrize("renewed", [True, False])
def test_the_card_of_a_class_of_ours_names_none_that_diffusers_has_not(renewed, tmp_path):
    model = DDPMPP(8, model_channels=16, channel_mult=(1,), num_blocks=1, attention_sizes=(), num_classes=3)
    model.save_pretrained(tmp_path / "base")
    network = adapt(model)
    if renewed:
        new_classes(network, 5, 7)
    adapter = attach(
        Lora(2),
        network,
        str(tmp_path / "base"),
        1,
        table=True,
        renewed=renewed,
        sha256=digest(DDPMPP.from_pretrained(tmp_path / "base")),
    )
    shake(network.model)
    (tmp_path / "adapter").mkdir()
    adapter.save(tmp_path / "adapter")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), re.S)
    made = {}
    exec(code.replace("FOLDER", str(tmp_path / "adapter")), made)
    x, time, labels = torch.randn(2, 3, 8, 8), torch.tensor([0.1, -1.0]), torch.tensor([1, network.num_classes])
    with torch.no_grad():
        assert torch.equal(made["network"].eval()(x, time, labels), network.eval()(x, time, labels))


@pytest.mark.parametrize("renewed", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_the_card_of_a_lora_loads_its_class_table_too(renewed, shared, tmp_path):
    network = published(dit()) if shared else dit()
    network.save_pretrained(tmp_path / "base")
    if renewed:
        new_classes(network, 5, 7)
    adapter = attach(Lora(2), network, str(tmp_path / "base"), 1, table=True, renewed=renewed)
    shake(network.model)
    (tmp_path / "adapter").mkdir()
    adapter.save(tmp_path / "adapter")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "adapter" / "README.md").read_text(), re.S)
    made = {}
    exec(code.replace("FOLDER", str(tmp_path / "adapter")), made)
    x, last = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)), network.num_classes
    found = made["model"].eval()(x, torch.full((2,), 5.0), torch.tensor([1, last])).sample
    assert torch.allclose(found, seen(network.eval(), [1, last]), atol=1e-5)
