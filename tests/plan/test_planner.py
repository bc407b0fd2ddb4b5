"""Who and how much: distributions, streams, and batches that are left clean."""

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup import MixupPlan
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.lambdas import draw_lambda
from hf_mixup.plan.planner import Planner
from tests.plain_config import plain_config


def draw_many(config, size, count=400, seed=0):
    planner = Planner(config, seed)
    return [planner.draw(Examples(size)) for _ in range(count)]


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, None), (1.0, None), (2.0, 5.0)])
def test_lambda_follows_the_beta_distribution(alpha, beta):
    config = plain_config(alpha=alpha, beta=beta)
    lam = draw_lambda(np.random.default_rng(0), 5000, config)
    assert stats.kstest(lam, stats.beta(alpha, beta or alpha).cdf).pvalue > 0.01
    assert lam.dtype == np.float32 and lam.min() >= 0 and lam.max() <= 1


def test_a_batch_shares_one_lambda_in_batch_mode_only():
    batch = draw_lambda(np.random.default_rng(0), 32, plain_config(mode="batch"))
    elem = draw_lambda(np.random.default_rng(0), 32, plain_config(mode="elem"))
    assert np.unique(batch).size == 1 and np.unique(elem).size == 32


def test_dominant_keeps_the_larger_half_and_fixed_is_fixed():
    plain = draw_lambda(np.random.default_rng(0), 500, plain_config(alpha=1.0))
    dominant = draw_lambda(np.random.default_rng(0), 500, plain_config(alpha=1.0, dominant=True))
    np.testing.assert_allclose(dominant, np.maximum(plain, 1 - plain), rtol=1e-6)
    assert (draw_lambda(np.random.default_rng(0), 5, plain_config(lam=0.3)) == np.float32(0.3)).all()


@pytest.mark.parametrize("size", [2, 3, 8, 33])
@pytest.mark.parametrize("self_pairs", [True, False])
def test_partners_are_a_permutation(size, self_pairs):
    partners = np.stack([plan.partner for plan in draw_many(plain_config(self_pairs=self_pairs), size, 300)])
    assert (np.sort(partners, axis=1) == np.arange(size)).all()
    own = partners == np.arange(size)
    assert own.any() == self_pairs
    for i in range(size):
        seen = set(partners[:, i])
        assert len(seen) > min(size, 20) // 2 - 1


def test_partners_are_uniform_without_self_pairs():
    plans = draw_many(plain_config(self_pairs=False), 5, 4000)
    counts = np.bincount([plan.partner[0] for plan in plans], minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 0.01


def test_seed_and_rank_decide_the_plan():
    def first(seed, rank):
        plan = Planner(plain_config(), seed, rank).draw(Examples(16))
        return plan.partner.tolist(), plan.lam.tolist()

    assert first(0, 0) == first(0, 0)
    assert len({str(first(seed, rank)) for seed in (0, 1) for rank in (0, 1)}) == 4


def test_the_stream_belongs_to_nobody_else():
    torch.manual_seed(0)
    expected = Planner(plain_config(), 5).draw(Examples(8))
    np.random.seed(1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    plan = Planner(plain_config(), 5).draw(Examples(8))
    assert torch.equal(plan.lam, expected.lam) and torch.equal(torch.get_rng_state(), state)


def test_one_layer_is_drawn_per_batch():
    planner = Planner(plain_config(site="hidden"))
    layers = [planner.draw(Examples(4, [1, 4, 5])).layer for _ in range(300)]
    assert set(layers) == {1, 4, 5}
    assert stats.chisquare(np.bincount(layers)[[1, 4, 5]]).pvalue > 0.01


@pytest.mark.parametrize(("prob", "low", "high"), [(0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)])
def test_prob_is_the_share_of_mixed_batches(prob, low, high):
    share = np.mean([plan.active for plan in draw_many(plain_config(prob=prob), 4)])
    assert low <= share <= high


def test_a_clean_plan_pairs_everybody_with_themselves():
    plan = draw_many(plain_config(prob=0.0), 5, count=1)[0]
    assert not plan.active and plan.partner.tolist() == list(range(5)) and plan.lam.tolist() == [1.0] * 5


def test_a_batch_of_one_is_clean_and_an_odd_one_is_mixed():
    assert not any(plan.active for plan in draw_many(plain_config(), 1, count=20))
    assert all(plan.active for plan in draw_many(plain_config(), 7, count=20))


def test_mixing_stops_at_off_epoch():
    planner = Planner(plain_config(off_epoch=2.5))
    active = [planner.draw(Examples(4, epoch=epoch)).active for epoch in (0.0, 2.49, 2.5, 3.0)]
    assert active == [True, True, False, False]
    with pytest.raises(ValueError, match=r"off_epoch=2.5 needs the progress of training: give draw\(batch, epoch"):
        planner.draw(Examples(4))


def test_partner_and_lambda_have_one_shape():
    with pytest.raises(ValueError, match=r"same shape \(batch,\), got \(3,\) and \(2,\)"):
        MixupPlan(torch.arange(3), torch.ones(2), "embeddings")
