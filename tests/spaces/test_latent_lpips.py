"""Latent LPIPS: the published architecture by its names, shapes and values, and the small network that is trained on latents of one's own."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from percepta.estimate import Estimate
from percepta.formulation import Noised
from percepta.objectives import Metric, Term
from percepta.path import Rectified
from percepta.spaces.latent_lpips import KIND, WIDTHS, LatentLpips, latent_vgg
from percepta.spaces.latent_lpips_fit import SMALL, train_latent_lpips
from percepta.spaces.pretext import Recipe
from percepta.training.trained_against import spaces_behind

torch.set_num_threads(1)
TINY = (4, 6, 8, 10, 12)
SHORT = Recipe(steps=2, batch=8)
# the published package: index of each convolution in VGG16-BN's `features`, by slice, and its channels; the norm of each follows at the next index
CONVOLUTIONS = {
    1: ((0, None, 64), (3, 64, 64)),
    2: ((7, 64, 128), (10, 128, 128)),
    3: ((14, 128, 256), (17, 256, 256), (20, 256, 256)),
    4: ((24, 256, 512), (27, 512, 512), (30, 512, 512)),
    5: ((34, 512, 512), (37, 512, 512), (40, 512, 512)),
}
CUTS = (7, 14, 24, 34, 44)  # where its slices end: a pooling, or what stands in its place, belongs to the slice before it


def published_shapes(channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part, convolutions in CONVOLUTIONS.items():
        for index, before, after in convolutions:
            shapes[f"net.slice{part}.{index}.weight"] = (after, before or channels, 3, 3)
            shapes[f"net.slice{part}.{index}.bias"] = (after,)
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"net.slice{part}.{index + 1}.{name}"] = (after,)
            shapes[f"net.slice{part}.{index + 1}.num_batches_tracked"] = ()
    return shapes | {f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate(WIDTHS)}


@pytest.fixture(scope="module")
def reference() -> tuple[nn.Sequential, dict[str, Tensor]]:
    """torchvision's VGG16-BN, changed as the paper says, with statistics that are not those of a fresh network; and its file's tensors."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = make_layers(cfgs["D"], batch_norm=True)
        features[0] = nn.Conv2d(16, 64, 3, padding=1)
    for index in [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)][:3]:
        features[index] = nn.Identity()
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    heads = {f"lin{k}.model.1.weight": torch.randn(1, c, 1, 1, generator=generator) for k, c in enumerate(WIDTHS)}
    part = {i: 1 + sum(i >= cut for cut in CUTS) for i in range(44)}
    trunk = {f"net.slice{part[int(name.split('.')[0])]}.{name}": value for name, value in features.state_dict().items()}
    return features.eval(), trunk | heads


@pytest.fixture(scope="module")
def file(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "sd3_latest_vgg16_tuned.safetensors"
    save_file({name: value.contiguous() for name, value in reference[1].items()}, path)
    return path


def latents(seed: int, rows: int = 2, channels: int = 16, side: int = 8) -> Tensor:
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_published_names_and_shapes(reference):
    for channels in (4, 16):
        own = latent_vgg(channels).state_dict()
        names = {tuple(name.split(".")[2:]): shape for name, shape in published_shapes(channels).items() if name[:3] == "net"}
        assert {tuple(name.split(".")): tuple(value.shape) for name, value in own.items()} == names
    assert {name: tuple(value.shape) for name, value in reference[1].items()} == published_shapes(16)


@torch.no_grad()
def test_a_published_file_gives_the_published_distance(reference, file):
    """Written out again from the package's definition: cut into slices, unit length, squares, weights, mean over places."""
    features, tensors = reference
    x, y = latents(0), latents(1)
    expected = torch.zeros(2)
    for k, (start, stop) in enumerate(zip((0, *CUTS), CUTS, strict=False)):
        f, g = (features[:stop](one) for one in (x, y))
        assert stop - start in (7, 10)
        difference = (f / f.square().sum(1, keepdim=True).sqrt() - g / g.square().sum(1, keepdim=True).sqrt()).nan_to_num() ** 2
        expected += (difference * tensors[f"lin{k}.model.1.weight"]).sum(1).mean((1, 2))
    space = LatentLpips(file)
    assert space.reads.kind == "latents" and space.reads.channels == 16
    torch.testing.assert_close(space.distance(x, y), expected, rtol=1e-4, atol=1e-5)


def test_a_pickled_file_is_read_without_running_it(reference, file, tmp_path):
    torch.save(dict(reference[1]), tmp_path / "sd3_latest_vgg16_tuned.pth")
    ours, same = LatentLpips(tmp_path / "sd3_latest_vgg16_tuned.pth", 16), LatentLpips(file)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in ours.state_dict().items())


def test_other_files_are_refused(reference, file, tmp_path):
    def saved(tensors: dict[str, Tensor]):
        save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "file.safetensors")
        return tmp_path / "file.safetensors"

    tensors = reference[1]
    with pytest.raises(ValueError, match="belongs to another autoencoder"):
        LatentLpips(file, 4)
    bare = {
        f"model.features.{name.split('.', 2)[2]}": value[:1]
        for name, value in tensors.items()
        if name.startswith("net.") and value.ndim
    }
    with pytest.raises(ValueError, match="classifier that E-LatentLPIPS was made from"):
        LatentLpips(saved(bare))
    with pytest.raises(ValueError, match="no E-LatentLPIPS: it has 1 tensors"):
        LatentLpips(saved({"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match="no calibrated weights for layer 3"):
        LatentLpips(saved({name: value for name, value in tensors.items() if name != "lin3.model.1.weight"}))
    with pytest.raises(ValueError, match=r"10\.weight is missing \(1 of"):
        LatentLpips(saved({name: value for name, value in tensors.items() if name != "net.slice2.10.weight"}))
    with pytest.raises(ValueError, match="holds no latent LPIPS"):
        LatentLpips(tmp_path)
    with pytest.raises(ValueError, match="5 widths"):
        LatentLpips("random", widths=(1, 2))


def test_nothing_is_pooled_in_the_first_three_blocks():
    maps = LatentLpips("random", 4, TINY)(latents(0, channels=4, side=16))
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 16, 16), (6, 16, 16), (8, 16, 16), (10, 8, 8), (12, 4, 4)]


def test_a_distance():
    space = LatentLpips("random", 4, TINY).double()
    x, y = (latents(seed, 3, 4).double() for seed in (0, 1))
    assert torch.equal(space.distance(x, x), torch.zeros(3, dtype=torch.float64))
    assert (space.distance(x, y) > 0.01).all()
    torch.testing.assert_close(space.distance(x, y), space.distance(y, x))
    torch.testing.assert_close(space.distance(x, y)[1:2], space.distance(x[1:2], y[1:2]))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(space.distance(x, y).sum(), x)
    step = 1e-6 * grad
    with torch.no_grad():
        slope = float((space.distance(x + step, y) - space.distance(x - step, y)).sum()) / 2e-6
    assert slope == pytest.approx(float(grad.square().sum()), rel=1e-4)
    assert not any(p.requires_grad for p in space.parameters())


def test_what_it_does_not_read():
    space = LatentLpips("random", 4, TINY)
    with pytest.raises(ValueError, match="another autoencoder"):
        space.distance(latents(0), latents(0))
    with pytest.raises(ValueError, match="at least 4 x 4"):
        space.distance(latents(0, 2, 4, 3), latents(0, 2, 4, 3))


class Watched(LatentLpips):
    def forward(self, z):
        self.seen = [*getattr(self, "seen", []), (len(z), torch.is_grad_enabled())]
        return super().forward(z)


def test_as_a_gated_term():
    """Latents may lie far beyond [-1, 1]; what the gate drops is never seen, and parts of a batch add up to the whole."""
    space = Watched("random", 4, TINY)
    x0, x0_hat = 2 * latents(0, 6, 4), (2 * latents(1, 6, 4)).requires_grad_()
    t = torch.tensor([0.1, 0.9, 0.5, 0.95, 0.7, 0.2], dtype=torch.float64)
    est = Estimate(x0_hat, x0, True, Noised(x0, x0, t, x0), Rectified())
    term = Term("latent-lpips", Metric(space), keep=lambda est: est.level <= 3)
    loss = term(est)
    assert space.seen == [(4, False), (4, True)]
    (grad,) = torch.autograd.grad(loss, x0_hat)
    assert [bool(row.any()) for row in grad] == [True, False, True, False, True, True]
    expected = space.distance(x0_hat.detach(), x0)[t <= 0.75].sum() / 6
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parts = [term(est.select(torch.arange(6) // 2 == k)) / 3 for k in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(loss.item(), rel=1e-5)
    assert [one.name for one in spaces_behind(term.objective)] == ["latent-lpips"]


def kinds(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents of three kinds: noise about a pattern of the kind's own."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(77))
    labels = torch.arange(rows) % 3
    return patterns[labels] + 0.7 * torch.randn(rows, 4, 8, 8, generator=generator), labels


@pytest.mark.parametrize("labelled", [True, False])
def test_a_network_of_ones_own(tmp_path, labelled):
    x, labels = kinds(200)
    said: list[str] = []
    folder = train_latent_lpips(x, tmp_path, labels if labelled else None, recipe=Recipe(steps=30, batch=32), note=said.append)
    space = LatentLpips(folder, 4)
    facts = json.loads((folder / KIND.facts).read_text())
    assert facts["method"] == ("supervised" if labelled else "contrastive") and facts["channel_weights"] == "uniform"
    assert [one.unique().tolist() for one in space.calibration] == [[1 / width] for width in SMALL]
    assert facts["reached"] > 0.75 if labelled else facts["reached"] < 3.8, "chance is a third, or ln 63 = 4.14"
    other, _ = kinds(60, seed=5)
    noise = latents(3, 60, 4)
    near, far = (space.distance(other, other + strength * noise) for strength in (0.1, 1.0))
    assert (near > 0).all() and float(far.mean()) > 3 * float(near.mean())
    assert ("3 classes" if labelled else "contrastive") in space.about and "200 of 200 latents" in said[-1]
    assert space.name == f"latent-lpips:{space.weights[:12]}"


def test_it_is_found_again_by_what_it_was_trained_on(tmp_path):
    x, labels = kinds(40)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    folder = train_latent_lpips(x, tmp_path, labels, recipe=SHORT, widths=TINY)
    assert torch.equal(torch.rand(3), expected), "training moved the global random numbers"
    before = (folder / KIND.weights).stat().st_mtime_ns
    assert train_latent_lpips(x.clone(), tmp_path, labels, recipe=SHORT, widths=TINY) == folder
    assert (folder / KIND.weights).stat().st_mtime_ns == before
    again = train_latent_lpips(x, tmp_path / "elsewhere", labels, recipe=SHORT, widths=TINY)
    assert LatentLpips(again).weights == LatentLpips(folder).weights
    moved = x.clone()
    moved[17, 2, 3, 1] += 1e-3
    others = [
        train_latent_lpips(moved, tmp_path, labels, recipe=SHORT, widths=TINY),
        train_latent_lpips(x, tmp_path, labels.flip(0), recipe=SHORT, widths=TINY),
        train_latent_lpips(x, tmp_path, None, recipe=SHORT, widths=TINY),
        train_latent_lpips(x, tmp_path, labels, 1, SHORT, TINY),
        train_latent_lpips(x, tmp_path, labels, recipe=replace(SHORT, steps=1), widths=TINY),
        train_latent_lpips(x, tmp_path, labels, recipe=SHORT, widths=(4, 4, 4, 4, 4)),
    ]
    assert len({folder, *others}) == 7


def test_too_few_of_each_class_teach_nothing(tmp_path):
    methods = []
    for rows in (23, 24):
        x, labels = kinds(rows)
        folder = train_latent_lpips(x, tmp_path, labels, recipe=SHORT, widths=TINY)
        methods.append(json.loads((folder / KIND.facts).read_text())["method"])
    assert methods == ["contrastive", "supervised"]


def test_it_can_be_left_at_any_step_and_leaves_nothing(tmp_path):
    calls = []

    def check():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_latent_lpips(kinds(40)[0], tmp_path, recipe=replace(SHORT, steps=50), widths=TINY, check=check)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_explained(tmp_path):
    x, labels = kinds(40)
    with pytest.raises(ValueError, match="at least 16 latents"):
        train_latent_lpips(x[:15], tmp_path)
    with pytest.raises(ValueError, match="square latents"):
        train_latent_lpips(x[..., :6], tmp_path)
    with pytest.raises(ValueError, match="not finite"):
        train_latent_lpips(x / 0, tmp_path)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        train_latent_lpips(x, tmp_path, labels - 1)
    folder = train_latent_lpips(x, tmp_path, recipe=SHORT, widths=TINY)
    (folder / KIND.weights).write_bytes((folder / KIND.weights).read_bytes() + b" ")
    with pytest.raises(ValueError, match="train it again"):
        LatentLpips(folder)
