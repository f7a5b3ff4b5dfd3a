"""What a run was trained against: found behind its terms, written down, inherited, and recognised in the names of metrics' spaces."""

import json
from dataclasses import dataclass
from unittest.mock import Mock

import pytest
from processes import FLAGS
from torch import Tensor

from percepta.estimate import Estimate
from percepta.evaluation.contamination import contaminated, family, trained_against
from percepta.objectives import AbstractPerSample, Denoising, PyramidL1, Term
from percepta.objectives.term import per_sample
from percepta.recipes import recipes
from percepta.spaces import Pixels, Space
from percepta.spaces.trunks import Trunk
from percepta.training.job import train
from percepta.training.method import Method
from percepta.training.recipe import Context, Recipe
from percepta.training.reopen import export_run
from percepta.training.settings import Settings
from percepta.training.trained_against import record, spaces_behind

RECIPES = recipes()


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "steps": 1, "network": tiny.network, "out": out, **changed})


class Half(Space):
    """A space of a test, with a name of its own."""

    name = "clip"

    def forward(self, x: Tensor):
        return (x / 2,)


class Near(AbstractPerSample):
    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, est: Estimate) -> Tensor:
        real, fake = est.features(self.space)
        return per_sample((real[0] - fake[0]) ** 2)


@dataclass(frozen=True, kw_only=True)
class Nearer(Recipe):
    """Denoising beside a term in a space."""

    name = "ddpm"  # so that its folder can be opened again
    summary = "denoising in a space"
    example = "percepta train nearer"

    def build(self, context: Context) -> Method:
        plain = RECIPES["ddpm"]().build(context)
        return Method(plain.model, plain.estimate, [*plain.terms, Term("near", Near(Half()))], plain.product)


def test_every_space_has_a_name():
    class Odd(Space):
        pass

    class OddChild(Half):
        pass

    assert [Odd().name, OddChild().name, Half().name, Pixels().name] == ["odd", "clip", "clip", "pixels"]
    assert Trunk("alex", weights="random").name == "alex"
    assert Space.name == ""


def test_spaces_are_found_wherever_an_objective_keeps_them():
    class Nested(AbstractPerSample):
        def __init__(self):
            self.parts = [Near(Half()), {"deep": PyramidL1(Trunk("squeeze", weights="random", on=Half()))}]

        def __call__(self, est): ...

    assert [space.name for space in spaces_behind(Nested())] == ["clip", "squeeze", "clip"]
    assert list(spaces_behind(Denoising())) == []


@pytest.mark.parametrize(
    ("space", "trained", "marked"),
    [
        ("inception-768", ["inception-2048"], True),
        ("inception-spatial", ["inception"], True),
        ("alex", ["lpips-alex"], True),
        ("lpips-alex", ["alex"], True),
        ("lpips-vgg", ["vgg19"], True),
        ("dinov2-embedding", ["dino"], True),
        ("dinov2-s", ["dinov2"], True),
        ("clip-l-embedding", ["clip"], True),
        ("inception-2048", ["alex", "clip", "dino", "domain"], False),
        ("lpips-squeeze", ["lpips-alex"], False),
        ("domain:aa", ["domain:aa"], True),
        ("domain:aa", ["domain:bb"], False),
        ("domain-embedding", ["domain:bb"], True),
        ("inception-2048", [], False),
        ("odd-embedding", ["odd"], True),
        ("odd", ["odder"], False),
    ],
)
def test_the_same_network_counts_whatever_its_layer(space, trained, marked):
    assert contaminated(space, trained) is marked


def test_a_family_is_the_network():
    assert [family(name) for name in ("lpips-vgg", "vgg16", "Inception-logits", "domain:3f")] == [
        "vgg",
        "vgg",
        "inception",
        "domain",
    ]


@pytest.fixture(scope="module")
def near(tiny, tmp_path_factory):
    """A run with a term in a space."""
    return train(Nearer(), settings(tiny, tmp_path_factory.mktemp("near") / "run"), quiet=True).folder


def resolved(run):
    return json.loads((run / "config.json").read_text())["resolved"]["trained_against"]


def test_a_run_writes_it_down_and_a_plain_one_has_none(near, tiny, tmp_path):
    assert resolved(near) == [{"space": "clip", "term": "near"}]
    plain = train(RECIPES["ddpm"](), settings(tiny, tmp_path / "run"), quiet=True).folder
    assert resolved(plain) == []
    assert trained_against(plain) == ()
    assert "trained_against" not in (plain / "model" / "README.md").read_text()


def test_a_run_its_model_and_a_copy_of_the_model_all_tell(near, tmp_path):
    (near / "model").rename(tmp_path / "copy")
    assert trained_against(tmp_path / "copy") == ("clip",)
    assert "trained_against: clip" in (tmp_path / "copy" / "README.md").read_text()
    (tmp_path / "copy").rename(near / "model")
    for place in (near, str(near), near / "model", near / "model" / "unet", near / "checkpoint-1"):
        assert trained_against(place) == ("clip",)
    assert trained_against(tmp_path) == ()
    assert trained_against(tmp_path / "nowhere") == ()


def test_an_export_made_later_tells_too(near, tmp_path):
    export_run({"ddpm": Nearer}, near, tmp_path / "out", raw=True)
    assert trained_against(tmp_path / "out") == ("clip",)


def test_what_starts_from_a_run_inherits(near, tmp_path):
    after = train(
        RECIPES["ddpm"](), Settings(**{**FLAGS, "steps": 1, "init": str(near), "out": tmp_path / "after"}), quiet=True
    ).folder
    assert resolved(after) == [{"space": "clip", "inherited": f"--init {near}"}]
    assert trained_against(after / "model") == ("clip",)
    near.rename(tmp_path / "gone")
    assert trained_against(after) == ("clip",)
    (tmp_path / "gone").rename(near)


def written(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": "ddpm", "settings": {}, "resolved": {}, **config}))
    return folder


def test_older_runs_are_followed_by_init_and_vae_and_circles_end(tmp_path):
    coder = written(tmp_path / "coder", resolved={"trained_against": [{"space": "alex", "term": "perceptual"}]})
    (coder / "model").mkdir()
    first = written(tmp_path / "first", settings={"vae": str(coder / "model"), "init": str(tmp_path / "second")})
    second = written(tmp_path / "second", settings={"init": str(first)})
    assert trained_against(second) == ("alex",)
    assert trained_against(first) == ("alex",)


def test_a_translator_inherits_from_what_made_the_latents_that_judge_it(tmp_path):
    """Now by the recipe's flags, and in runs that were trained before this was recorded."""
    coder = written(tmp_path / "coder", resolved={"trained_against": [{"space": "alex", "term": "perceptual"}]})
    plain = written(tmp_path / "plain")
    prior = written(tmp_path / "prior", knobs={"own": str(plain), "other": str(coder)})
    features = written(tmp_path / "features", settings={"vae": str(coder)})
    method = Mock(spec=Method, all_terms=[])
    kind = RECIPES["ladiffgan"]

    def against(**knobs):
        return record(method, kind(source="shapes", **knobs), Settings())

    given = {"autoencoder_a": plain, "autoencoder_b": coder, "prior_a": prior, "features_b": features}
    assert against(**given) == [
        {"space": "alex", "inherited": f"--autoencoder-b {coder}"},
        {"space": "alex", "inherited": f"--prior-a {prior}"},
    ]
    assert against(**given, latent_gan="B")[-1] == {"space": "alex", "inherited": f"--features-b {features}"}
    assert against(**given, latent_gan="none", denoising="none") == against(autoencoder_a=plain) == []
    own = record(method, RECIPES["prior"](own=str(coder), other=str(plain)), Settings())
    assert own == [{"space": "alex", "inherited": f"--own {coder}"}]
    for flag, folder in given.items():
        older = written(
            tmp_path / f"older-{flag}", recipe="ladiffgan", knobs={flag: str(folder), "target": "shapes", "blocks": None}
        )
        (older / "model").mkdir()
        assert trained_against(older / "model") == (() if folder == plain else ("alex",)), flag
    assert contaminated("lpips-alex", trained_against(tmp_path / "older-prior_a"))


def test_a_damaged_record_is_not_a_clean_one(tmp_path):
    run = written(tmp_path / "run")
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not known what the model was trained against"):
        trained_against(run)
