"""Players: every key of the log is drawn once, with the player whose it is, under a name for readers."""

import json
from collections import Counter

import pytest
from run_folders import KEYS

from percepta.reports import read_run, read_runs
from percepta.reports.curves import SPAN, spans, training_charts
from percepta.reports.players import owner, players, worded


def panels(*roots) -> dict[str, list[str]]:
    """The keys in each panel, by its title."""
    return {panel["title"]: [chart["id"] for chart in panel["charts"]] for panel in training_charts(read_runs(roots))["panels"]}


def test_every_key_is_drawn_once(make_translator) -> None:
    root = make_translator()
    groups = training_charts(read_runs([root]))
    drawn = Counter(chart["id"] for panel in groups["panels"] for chart in panel["charts"])
    assert drawn == Counter(KEYS)
    assert not groups["terms"] and not groups["told"]
    assert [chart["id"] for chart in groups["optimizer"]] == ["lr"], "a norm is its player's"


def test_each_player_has_its_own(make_translator) -> None:
    found = panels(make_translator())
    assert list(found) == ["Generators", "Critic of A", "Critic of B", "Latent critic of A", "Latent critic of B"]
    assert found["Critic of B"] == ["critic/adversarial/b", "adversarial/b/T", "adversarial/b/fooled", "grad_norm/adversarial/b"]
    assert found["Latent critic of A"] == ["critic/latent-gan/a", "latent-gan/a/fooled", "grad_norm/latent-gan/a"]
    assert found["Generators"] == [
        "adversarial/a", "adversarial/b", "cycle", "identity", "cam", "latent-gan/a", "latent-gan/b", "denoising/b", "denoising/a",
        "grad_norm/model",
    ]  # fmt: skip


def test_names_are_words_and_the_key_of_the_log_stands_beside(make_translator) -> None:
    groups = training_charts(read_runs([make_translator()]))
    told = {chart["id"]: (chart["title"], chart["about"]) for panel in groups["panels"] for chart in panel["charts"]}
    assert told["adversarial/b"] == ("Fooling the critic of B", "images translated A → B, as its critic sees them (adversarial/b)")
    assert told["denoising/a"][0] == "Denoised as A" and told["denoising/a"][1].startswith("images translated B → A, under A's")
    assert told["critic/adversarial/a"] == ("Its loss", "(critic/adversarial/a)")
    assert all(f"({key})" in about for key, (_, about) in told.items())
    assert [line["name"] for line in groups["shares"][0]["lines"]] == ["There and back", "Attention classifier"]


def test_an_unknown_term_keeps_its_name(make_translator) -> None:
    root = make_translator(keys=("critic/adversarial/a", "adversarial/a", "perceptual/new", "weight/denoising/b"))
    charts = {c["id"]: c for panel in training_charts([read_run(root)])["panels"] for c in panel["charts"]}
    assert (charts["perceptual/new"]["title"], charts["perceptual/new"]["about"]) == ("perceptual/new", "")
    assert charts["weight/denoising/b"]["title"] == "Weight: Denoised as B"


def test_a_run_without_critics_has_no_players(make_run) -> None:
    groups = training_charts([read_run(make_run())])
    assert groups["panels"] == [] and [c["id"] for c in groups["terms"]] == ["denoising"]
    assert players([], ["denoising", "structure"]) == []


def test_critics_of_other_methods_have_the_names_of_their_terms(make_run) -> None:
    root = make_run()
    record = {
        "denoising": 1.0,
        "structure": 0.5,
        "structure/drift": 0.1,
        "critic/structure": -0.5,
        "grad_norm/structure": 2.0,
        "cycle": 1.0,
    }
    (root / "metrics.jsonl").write_text(json.dumps({"step": 1, **record}) + "\n")
    assert panels(root) == {
        "Model": ["denoising", "structure", "cycle"],
        "Critic of structure": ["critic/structure", "structure/drift", "grad_norm/structure"],
    }
    assert worded("cycle", translator=False) == ("cycle", "")


def test_runs_of_different_players_are_drawn_together(make_translator) -> None:
    alone = make_translator("alone", keys=[key for key in KEYS if "latent" not in key and "denoising" not in key])
    groups = training_charts(read_runs([alone, make_translator("both")]))
    names = {panel["title"]: {line["name"] for chart in panel["charts"] for line in chart["lines"]} for panel in groups["panels"]}
    assert names["Critic of A"] == {"alone", "both"} and names["Latent critic of A"] == {"both"}


@pytest.mark.parametrize("key", ["adversarial/ab", "adversarial", "grad_norm/adversarial/ab", "weight/adversarial/a"])
def test_only_its_own_keys_are_a_critics(key: str) -> None:
    assert owner(key, ["model", "adversarial/a"]) == "model"
    assert owner("adversarial/a/T", ["model", "adversarial/a"]) == "adversarial/a"


def test_a_logarithmic_axis_where_it_fits(make_translator) -> None:
    charts = {c["id"]: c for panel in training_charts([read_run(make_translator())])["panels"] for c in panel["charts"]}
    assert charts["cycle"]["log"] and not charts["cam"]["log"]
    assert spans([{"y": [1.0, SPAN + 1.0]}]) and spans([{"y": [1.0]}, {"y": [None, SPAN + 1.0]}])
    assert not spans([{"y": [1.0, float(SPAN)]}]) and not spans([{"y": [0.0, 1e9]}]) and not spans([{"y": [-1.0, 1e9]}])
    assert spans([{"y": [10.0, 20.0], "lo": [0.1, 1.0], "hi": [10.0, 30.0]}]) and not spans([]) and not spans([{"y": [None]}])
