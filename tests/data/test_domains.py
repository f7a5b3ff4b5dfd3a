"""Two domains: where they are found, what is said of what is missing, pairs that are known and that training never meets."""

import json

import numpy as np
import pytest

from percepta.data import Domains, Shapes, find_domains, open_pairs, open_source, paired, partners, split_domains
from percepta.data.domains import names_of
from percepta.data.shapes import TEST, attributes


@pytest.fixture
def root(tmp_path, make):
    for k, name in enumerate(("trainA", "trainB", "testA", "testB")):
        make.folder(tmp_path / "set" / name, 3 + k, first=10 * k)
    return tmp_path / "set"


def test_a_folder_of_both_and_two_paths_are_the_same(root, monkeypatch):
    found = find_domains(str(root))
    assert found == Domains(*(str(root / name) for name in ("trainA", "trainB", "testA", "testB")), pairing="none")
    assert find_domains(str(root / "trainA"), str(root / "trainB")) == found
    assert [len(open_source(spec)) for spec in (found.train_a, found.train_b, *found.tests())] == [3, 4, 5, 6]
    monkeypatch.chdir(root.parent)
    assert find_domains("set").tests() == ("set/testA", "set/testB")
    monkeypatch.chdir(root)
    assert find_domains("trainA", "trainB").tests() == ("testA", "testB")
    assert find_domains("./trainB", "trainA").test_a == "testB"  # the other way round


@pytest.mark.parametrize(
    ("train", "test"), [("A", "testA"), ("train/cat", "test/cat"), ("one/train", "one/test"), ("trainCat.npz", "testCat.npz")]
)
def test_other_places_of_test_sets(tmp_path, make, train, test):
    make.folder(tmp_path / "B", 3)
    for name in (train, test):
        if name.endswith(".npz"):
            np.savez(tmp_path / name, np.zeros((2, 8, 8, 3), np.uint8))
        else:
            make.folder(tmp_path / name, 3)
    found = find_domains(str(tmp_path / train), str(tmp_path / "B"))
    assert (found.test_a, found.test_b) == (str(tmp_path / test), None)
    with pytest.raises(ValueError, match="no test images of B for .*testB/ beside trainA/"):
        found.tests()


def test_a_folder_of_photographs_has_no_test_set(tmp_path, make):
    for name in ("photos", "testphotos", "paintings"):
        make.folder(tmp_path / name, 3)
    found = find_domains(str(tmp_path / "photos"), str(tmp_path / "paintings"))
    assert (found.test_a, found.test_b, found.pairing) == (None, None, "none")
    with pytest.raises(ValueError, match="no test images of A and B"):
        found.tests()


def test_what_is_missing_is_said(root, tmp_path):
    for source, target, words in (
        (root / "trainA", None, "translation needs two domains"),
        (root / "trainC", None, r"trainC: does not exist; did you mean .*train[AB]\?"),
        (root / "trainA", root / ".." / "set" / "trainA", "both domains are .*trainA"),
        ("shapes:domain=outline", None, "leave the domain out"),
        ("shapes:domain=filled", "shapes:labels=none,size=16", "both domains are shapes"),
        ("shapes:part=test", None, "to judge by"),
    ):
        with pytest.raises(ValueError, match=words):
            find_domains(str(source), None if target is None else str(target))
    (root / "trainB").rename(root / "trainb")
    with pytest.raises(ValueError, match=r"holds trainA/ without the other one, beside testA, testB, trainb"):
        find_domains(str(root))


def test_a_and_b_with_test_sets_are_domains_and_no_classes(tmp_path, make):
    for name in ("A", "B", "testA"):
        make.folder(tmp_path / name, 3)
    with pytest.raises(ValueError, match=r"holds two domains .*--source"):
        open_source(tmp_path)
    assert find_domains(str(tmp_path)).test_a == str(tmp_path / "testA")
    assert len(open_pairs(tmp_path)) == 3


def test_shapes_are_judged_by_pairs_of_scenes_that_no_training_set_has():
    found = find_domains("shapes:length=300,textures=plain,seed=4,only=star+ring")
    a, b, test_a, test_b = (open_source(spec, 16) for spec in (found.train_a, found.train_b, *found.tests()))
    assert found.pairing == "scenes"
    assert [(s.domain, s.part, s.length) for s in (a, b, test_a, test_b)] == [
        ("outline", "train", 300), ("filled", "train", 300), ("outline", "test", 300), ("filled", "test", 300),
    ]  # fmt: skip
    assert {s.textures for s in (a, b, test_a, test_b)} == {"plain"}
    places = [set(s.attributes(range(300)).x.tolist()) for s in (a, b, test_a)]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    for k in (0, 7, 299):
        assert np.array_equal(test_a.hidden_pair(k), test_b.read(k).image)
        assert np.array_equal(test_b.hidden_pair(k), test_a.read(k).image)
        assert test_a.read(k).label == test_b.read(k).label
    ours, theirs = partners(test_a, test_b, found.pairing)
    assert ours.tolist() == theirs.tolist() == list(range(300))
    assert len(open_source(find_domains("shapes").tests()[0])) == 1000


def test_scenes_to_judge_by_are_another_set():
    train, test = Shapes(length=9), Shapes(length=9, part="test")
    assert train.fingerprint == Shapes(length=9, part="train").fingerprint != test.fingerprint
    assert np.array_equal(test.attributes([3]).x, attributes(np.array([3 + TEST]), 0).x)
    assert test.read(3).name == "shapes:filled/test/3"
    with pytest.raises(ValueError, match="known: train, test"):
        open_source("shapes:part=val")


def test_pairs_are_known_of_equal_scenes_alone():
    def of(**options):
        return Shapes(**{"part": "test", "length": 5, **options})

    assert paired(of(domain="outline"), of())
    assert paired(of(textures="plain"), of())
    assert paired(of(domain="outline", only="ring+star"), of(only="star+ring"))
    for other in (of(seed=1), of(length=6), of(only="star"), Shapes(length=5)):
        assert not paired(of(domain="outline"), other)
        with pytest.raises(ValueError, match="do not show the same scenes"):
            partners(of(domain="outline"), other, "scenes")
    assert not paired(Shapes(domain="outline"), Shapes())
    found = find_domains("shapes:domain=outline,seed=1", "shapes:seed=2")
    assert found.pairing == "none"
    assert partners(of(domain="outline"), of(), found.pairing) is None


def test_file_names_pair_where_it_is_said(root):
    a, b = (open_source(root / name) for name in ("testA", "testB"))
    (root / "domains.json").write_text('{"pairing": "names"}')
    found = find_domains(str(root))
    assert found.pairing == "names"
    assert not paired(a, b)  # by what they are, nothing is known of them
    (root / "testB" / "001.png").rename(root / "testB" / "other.png")
    (root / "testA" / "000.jpeg").rename(root / "testA" / "000.JPG")  # the ending does not count
    a, b = (open_source(spec) for spec in found.tests())
    pairs = partners(a, b, found.pairing)
    assert (
        [a.names[k].split(".")[0] for k in pairs.a] == [b.names[k].split(".")[0] for k in pairs.b] == ["000", "002", "003", "004"]
    )
    for text, words in (("{", "is not JSON"), ("[]", "needs"), ('{"pairing": "index"}', "equal file names belong together")):
        (root / "domains.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            find_domains(str(root))
    (root / "domains.json").write_text('{"pairing": "none"}')
    assert find_domains(str(root)).pairing == "none"


def test_names_that_cannot_pair(root, tmp_path, make):
    a, b = (open_source(root / name) for name in ("testA", "testB"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(make.encoded(make.picture(0)))
    with pytest.raises(ValueError, match=r"none in common \(000, 001, 002, \.\.\.; x\)"):
        partners(a, open_source(tmp_path / "other"), "names")
    with pytest.raises(ValueError, match="no files in a folder"):
        partners(a, Shapes(), "names")
    with pytest.raises(ValueError, match="known: none, names, scenes"):
        partners(a, b, "index")
    (root / "testB" / "000.png").write_bytes(make.encoded(make.picture(0)))
    with pytest.raises(ValueError, match=r"000\.jpeg and 000\.png have the same name"):
        partners(a, open_source(root / "testB"), "names")


def folders(tmp_path, make, counts=(20, 17), shift=3):
    """A and B, where names from `shift` on occur in both."""
    for side, (letter, count) in enumerate(zip("AB", counts, strict=True)):
        (tmp_path / letter).mkdir()
        for k in range(count):
            (tmp_path / letter / f"{k + side * shift:03d}.png").write_bytes(make.encoded(make.picture(100 * side + k, 6, 7)))
    return tmp_path / "A", tmp_path / "B"


def test_splitting_by_names_leaves_no_pair_to_train_on(tmp_path, make):
    a, b = folders(tmp_path, make)
    found = split_domains(a, b, tmp_path / "out", 5, "names")
    assert found == find_domains(str(tmp_path / "out"))
    assert found.pairing == "names"
    sets = {name: set(names_of(open_source(tmp_path / "out" / name))) for name in ("trainA", "trainB", "testA", "testB")}
    assert sets["testA"] == sets["testB"]
    assert len(sets["testA"]) == 5
    assert not sets["trainA"] & sets["trainB"]
    assert not (sets["trainA"] | sets["trainB"]) & sets["testA"]
    assert sets["trainA"] | sets["trainB"] | sets["testA"] == {f"{k:03d}" for k in range(20)}
    assert {f"{k:03d}" for k in range(3)} <= sets["trainA"]  # what has no partner is not lost
    assert abs(len(sets["trainA"]) - len(sets["trainB"])) <= 4
    assert (tmp_path / "out" / "trainA" / "000.png").read_bytes() == (a / "000.png").read_bytes()
    assert json.loads((tmp_path / "out" / "domains.json").read_text()) == {"pairing": "names"}
    again = split_domains(a, b, tmp_path / "again", 5, "names")
    assert open_pairs(again.train_a, again.train_b).fingerprint == open_pairs(found.train_a, found.train_b).fingerprint
    other = split_domains(a, b, tmp_path / "other", 5, "names", seed=1)
    assert set(names_of(open_source(other.tests()[0]))) != sets["testA"]


def test_splitting_without_pairs_takes_the_most_of_each(tmp_path, make):
    a, b = folders(tmp_path, make)
    found = split_domains(a, b, tmp_path / "out", 4)
    assert found.pairing == "none"
    assert [len(open_source(spec)) for spec in (found.train_a, found.train_b, *found.tests())] == [16, 13, 4, 4]
    for letter, folder in (("A", a), ("B", b)):
        parts = [set(names_of(open_source(tmp_path / "out" / f"{part}{letter}"))) for part in ("train", "test")]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == set(names_of(open_source(folder)))


def test_splits_that_cannot_be(tmp_path, make):
    a, b = folders(tmp_path, make, (9, 6))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for options, words in (
        ({"test": 6}, "6 images cannot give 6"),
        ({"test": 7, "pairing": "names"}, "6 file names in common, fewer than the 7 pairs"),
        ({"test": 0}, "at least 1"),
        ({"test": 1, "pairing": "scenes"}, "got pairing='scenes'"),
    ):
        with pytest.raises(ValueError, match=words):
            split_domains(a, b, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()  # nothing is left of what was refused
    with pytest.raises(ValueError, match="exists already"):
        split_domains(a, b, tmp_path / "full", 1)
