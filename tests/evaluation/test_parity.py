"""The whole way, from folders to numbers, on 2,000 real images a side: equal to torch-fidelity and pytorch-fid on the same files.

The partial FID network (768 features) is the one whose real weights may be beside the checkout; what it cannot reach (2048 features, logits)
is compared on random weights in tests/spaces. `make parity` runs this: minutes, for the peers' sake.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from percepta.discrepancies.mmd import CUBIC, mmd2
from percepta.evaluation.cmmd import cmmd
from percepta.evaluation.evaluate import evaluate
from percepta.memory import fast_malloc
from percepta.spaces.inception import PARTIAL
from percepta.spaces.inception_layers import EPS
from percepta.weights.reading import read_weights
from percepta.weights.table import BY_NAME, ENV, find_weights, has_weights

NUM = int(os.environ.get("PERCEPTA_PARITY_NUM", "2000"))  # .ci/run takes fewer; KID's subsets want more than 1,000
pytestmark = [
    pytest.mark.timeout(2400),  # the fixtures are most of the time
    pytest.mark.slow,
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # torch-fidelity starts four workers anywhere
    pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning"),  # pytorch-fid's call of scipy
]


@pytest.fixture(scope="module", autouse=True)
def _fast() -> None:
    fast_malloc()  # everybody here, the peers too, is a fifth faster so


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """2,000 test and 2,000 training images of CIFAR-10, the stored JPEG files as they are."""
    if not has_weights(PARTIAL):
        pytest.skip(f"set {ENV} to a folder that holds {BY_NAME[PARTIAL].file}")
    beside = Path(os.environ.get(ENV, ".")).parent / "data"
    pack = Path(os.environ.get("PERCEPTA_DATA", beside)) / "cifar10_60k_jpegq75.npz"
    if not pack.is_file():
        pytest.skip(f"no {pack}; PERCEPTA_DATA names the folder of the data packs")
    root = tmp_path_factory.mktemp("cifar")
    stored = np.load(pack)
    for part in ("test", "train"):
        raw, ends = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offset"]
        (root / part).mkdir()
        for k in range(NUM):
            (root / part / f"{k:05d}.jpg").write_bytes(raw[ends[k] : ends[k + 1]])
    return str(root / "test"), str(root / "train")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> dict[str, torch.Tensor]:
    """The partial weights in the published layout: batch norms that change nothing, and random layers where nobody reads."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in read_weights(find_weights(PARTIAL)).items():
        if name.endswith("conv.weight"):
            norm, ones = name.replace("conv.weight", "bn"), torch.ones(len(tensor))
            tensors |= {name: tensor, f"{norm}.running_mean": 0 * ones, f"{norm}.running_var": ones - EPS, f"{norm}.weight": ones}
        else:
            tensors[name.replace("conv.bias", "bn.bias")] = tensor
    return tensors


class Peer:
    """torch-fidelity's values, and what went through its network: features, and the map that sFID reads."""

    def __init__(self, folders: tuple[str, str], tensors: dict[str, torch.Tensor]) -> None:
        import torch_fidelity
        from torch_fidelity import feature_extractor_inceptionv3 as module

        rows: list[torch.Tensor] = []
        maps: list[torch.Tensor] = []

        class Recording(module.FeatureExtractorInceptionV3):
            def load_state_dict(self, state, *given, **options):
                found = super().load_state_dict(tensors, strict=False)
                assert all(name.startswith(("Mixed_7", "fc")) or "num_batches" in name for name in found.missing_keys)
                self.Mixed_6d.branch1x1.register_forward_hook(
                    lambda _, given, out: maps.append(out[:, :7].permute(0, 2, 3, 1).flatten(1))
                )

            def forward(self, x):
                out = super().forward(x)
                rows.append(out[0])
                return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "load_state_dict_from_url", lambda *given, **options: {})
            torch_fidelity.register_feature_extractor("recording", Recording)
            self.values = torch_fidelity.calculate_metrics(
                input1=folders[0], input2=folders[1], cuda=False, verbose=False, cache=False, batch_size=50, fid=True, kid=True, prc=True,
                feature_extractor="recording", feature_layer_fid="768", feature_layer_kid="768", feature_layer_prc="768",
            )  # fmt: skip
        everything, spatial = torch.cat(rows).numpy().astype(np.float64), torch.cat(maps).numpy().astype(np.float64)
        assert len(everything) == 2 * NUM
        self.fake, self.real = everything[:NUM], everything[NUM:]
        self.spatial = spatial[:NUM], spatial[NUM:]


@pytest.fixture(scope="module")
def peer(folders, whole_file) -> Peer:
    pytest.importorskip("torch_fidelity", reason="pip install torch-fidelity")
    return Peer(folders, whole_file)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def ours(folders, cache):
    return evaluate(*folders, metrics=("fid", "kid", "pr", "dc", "sfid"), spaces=("inception-768",), cache=cache, batch=50)


def close(found: float, truth: float, relative: float = 1e-3, absolute: float = 0.0) -> bool:
    return abs(found - truth) <= relative * abs(truth) + absolute


def test_equal_to_torch_fidelity(ours, peer):
    assert close(ours["fid"], peer.values["frechet_inception_distance"])
    assert close(ours["kid"], peer.values["kernel_inception_distance_mean"])
    assert close(
        ours.metrics["kid"].std, peer.values["kernel_inception_distance_std"], absolute=1e-8
    )  # the kernel's sums are near 1
    assert close(ours["precision"], peer.values["precision"])
    assert close(ours["recall"], peer.values["recall"])
    assert ours.protocol["generated"]["count"] == NUM


def test_equal_to_pytorch_fid(folders, whole_file, cache, monkeypatch):
    pytest.importorskip("pytorch_fid", reason="pip install pytorch-fid")
    from pytorch_fid import fid_score, inception

    state = random_state(inception) | whole_file
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *given, **options: state)
    truth = fid_score.calculate_fid_given_paths(list(folders), 50, torch.device("cpu"), 768, num_workers=0)
    found = evaluate(*folders, metrics=("fid",), spaces=("inception-768",), dialect="pytorch-fid", cache=cache, batch=50)
    assert close(found["fid"], truth)


def random_state(inception) -> dict[str, torch.Tensor]:
    """Every tensor that pytorch-fid's network has, at random: its file is loaded strictly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *given, **options: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state, *given, **options: None)
        return inception.fid_inception_v3().state_dict()


def test_sfid_in_float64(ours, peer):
    import scipy.linalg

    a, b = peer.spatial
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = scipy.linalg.eigvals(covariances[0] @ covariances[1])  # rank-deficient: 2,023 dimensions of 2,000 images
    cross = np.sqrt(np.clip(eigenvalues.real, 0, None)).sum()
    truth = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross
    assert close(ours["sfid"], truth)


def test_density_and_coverage_in_float64(ours, peer):
    real, fake, k = peer.real, peer.fake, 5
    among = np.sqrt(np.maximum(squares(real, real), 0))
    np.fill_diagonal(among, np.inf)
    radii = np.sort(among, axis=1)[:, k - 1]
    inside = np.sqrt(np.maximum(squares(real, fake), 0)) < radii[:, None]
    assert close(ours["density"], inside.sum() / (k * NUM))
    assert close(ours["coverage"], inside.any(1).mean())


def test_kid_is_the_training_mmd(ours, peer, folders, cache):
    """One subset that is the whole set: KID is discrepancies.mmd2 of the same features."""
    once = evaluate(*folders, metrics=("kid",), spaces=("inception-768",), cache=cache, kid_subsets=1, kid_size=NUM)
    truth = mmd2(torch.from_numpy(peer.fake), torch.from_numpy(peer.real), CUBIC)
    assert close(once["kid"], float(truth))


def test_cmmd_in_float64(peer):
    """On real features; CLIP's weights are not at hand, and the formula does not ask whose embeddings they are."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (peer.fake, peer.real))
    means = [np.exp(-squares(p, q) / 200).mean() for p, q in ((x, x), (y, y), (x, y))]
    truth = 1000 * (means[0] + means[1] - 2 * means[2])
    assert close(cmmd(peer.fake.astype(np.float32), peer.real.astype(np.float32)), truth)


def test_bf16_moves_fid_by_less_than_half_a_per_cent(ours, folders, cache):
    rough = evaluate(*folders, metrics=("fid",), spaces=("inception-768",), precision="bf16", cache=cache)
    assert close(rough["fid"], ours["fid"], 5e-3)


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * x @ y.T
