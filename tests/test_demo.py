"""The commands of `make demo` are commands that the command line knows."""

import pytest

from percepta import demo
from percepta.cli.evaluate import Evaluate
from percepta.cli.parse import Usage, parse
from percepta.cli.train import read
from percepta.recipes import recipes
from percepta.training.evaluating import words


def test_its_training_is_one_and_is_evaluated_as_at_the_end():
    _, settings = read(recipes()["ddpm"], demo.TRAIN.split()[2:])
    after = parse(Evaluate, ["RUN", *demo.REAL.split(), *demo.EVALUATE.split()], "percepta evaluate")
    assert settings.steps % settings.eval_every == 0
    assert settings.eval_data is not None
    assert after.real == f"{settings.eval_data},size={settings.size}"
    assert (after.size, after.num, after.seed) == (settings.size, settings.eval_num, settings.seed)
    assert (after.space, words(after.metrics)) == (settings.eval_space, words(settings.eval_metrics))
    assert (after.sampler, after.steps, after.guidance) == (settings.sampler, settings.eval_steps, settings.guidance)


def test_a_wrong_flag_in_it_would_be_seen():
    with pytest.raises(Usage, match="--evaluate-every"):
        read(recipes()["ddpm"], [*demo.TRAIN.split()[2:], "--evaluate-every", "3"])
