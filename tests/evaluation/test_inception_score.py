"""Closed forms of the Inception Score, its two ways of splitting, and the peer's value."""

import numpy as np
import pytest
import torch

from percepta.evaluation.inception_score import ADM_SPLIT, inception_score


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def by_hand(logits: torch.Tensor) -> float:
    p = logits.double().softmax(1).numpy()
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def test_closed_forms() -> None:
    sure = torch.eye(10).repeat(50, 1) * 100
    assert inception_score(sure, 1)[0] == pytest.approx(10, rel=1e-9)  # every class, each time certain
    assert inception_score(torch.zeros(100, 10)) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(sure[:1].repeat(100, 1), 1)[0] == pytest.approx(1, abs=1e-9)  # one class only
    never = torch.randn(100, 10)
    never[:, 3] = -torch.inf
    assert inception_score(never, 1)[0] == pytest.approx(inception_score(never[:, torch.arange(10) != 3], 1)[0], rel=1e-12)


def test_splits() -> None:
    logits = torch.randn(103, 20) * 3
    order = np.random.RandomState(2020).permutation(103)
    scores = [by_hand(logits[order[k * 103 // 10 : (k + 1) * 103 // 10]]) for k in range(10)]
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    assert inception_score(logits.numpy()) == inception_score(logits)
    plain = [by_hand(logits[k * 103 // 10 : (k + 1) * 103 // 10]) for k in range(10)]
    assert inception_score(logits, seed=None) == pytest.approx((np.mean(plain), np.std(plain)), rel=1e-10)


def test_runs_in_order_as_adm_cuts_them() -> None:
    logits = torch.randn(110, 20) * 3
    scores = [by_hand(logits[k : k + 50]) for k in (0, 50, 100)]
    assert inception_score(logits, None, 50) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    assert inception_score(logits, None, ADM_SPLIT)[0] == pytest.approx(by_hand(logits), rel=1e-10)


def test_what_cannot_be_cut_is_said() -> None:
    for wrong in ({"splits": 11}, {"splits": 0}, {"splits": None}, {"split_size": 0}):
        with pytest.raises(ValueError, match="split"):
            inception_score(torch.randn(10, 5), **wrong)


@pytest.mark.reference
def test_parity_with_torch_fidelity() -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(505, 1008) * 2
    theirs = isc_features_to_metric(logits)
    assert inception_score(logits) == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-9)
