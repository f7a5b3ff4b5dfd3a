"""The commands of `make demo` are commands that the command line knows, and its numbers are of a space that was not trained against."""

import pytest

from percepta import demo
from percepta.cli.evaluate import Evaluate
from percepta.cli.parse import Usage, parse
from percepta.cli.report import Report
from percepta.cli.train import read
from percepta.recipes import recipes

SLOW, FAST, BEFORE, AFTER, REPORT = (command.format(out="OUT").split() for command in demo.COMMANDS)


def test_the_second_run_starts_from_the_first_and_both_are_judged_alike():
    _, slow = read(recipes()["ddpm"], SLOW[2:])
    recipe, fast = read(recipes()["mmd"], FAST[2:])
    assert (fast.init, fast.data, fast.size) == (str(slow.out), slow.data, slow.size)
    before, after = (parse(Evaluate, words[1:], "percepta evaluate") for words in (BEFORE, AFTER))
    assert (before.real, before.space, before.num, before.seed) == (after.real, after.space, after.num, after.seed)
    assert before.real == f"{fast.data},size={fast.size}"
    assert (before.sampler, before.steps) == ("ddim", recipe.sampler_steps)
    assert (after.sampler, after.steps) == (None, None)  # the chain it was trained for
    assert [str(run) for run in parse(Report, REPORT[1:], "percepta report").runs] == [str(slow.out), str(fast.out)]


def test_it_is_judged_by_an_encoder_that_was_not_trained_against():
    recipe, fast = read(recipes()["mmd"], FAST[2:])
    after = parse(Evaluate, AFTER[1:], "percepta evaluate")
    assert recipe.space == after.space == "domain"
    assert after.seed != fast.seed


def test_a_wrong_flag_in_it_would_be_seen():
    with pytest.raises(Usage, match="--evaluate-every"):
        read(recipes()["ddpm"], [*SLOW[2:], "--evaluate-every", "3"])
