"""How much: lambda over a training, and the lambda of the label."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup import MixupConfig
from hf_mixup.config.recipes import resolve_config
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.lambdas import at_epoch, draw_lambda, label_lambda, schedule_at
from hf_mixup.plan.planner import Planner
from tests.plain_config import plain_config

SCHEDULE = {0.2: 0.0, 0.4: 1.0, 0.8: 0.5}


@pytest.mark.parametrize("ramp", ["linear", "cosine", "step"])
@pytest.mark.parametrize(
    ("progress", "linear", "cosine", "step"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (0.2, 0.0, 0.0, 0.0),
        (0.25, 0.25, (1 - math.cos(math.pi / 4)) / 2, 0.0),
        (0.3, 0.5, 0.5, 0.0),
        (0.4, 1.0, 1.0, 1.0),
        (0.5, 0.875, 1 - (1 - math.cos(math.pi / 4)) / 4, 1.0),
        (0.8, 0.5, 0.5, 0.5),
        (1.0, 0.5, 0.5, 0.5),
    ],
)
def test_strength_goes_from_point_to_point(ramp, progress, linear, cosine, step):
    expected = {"linear": linear, "cosine": cosine, "step": step}[ramp]
    assert schedule_at(plain_config(schedule=SCHEDULE, ramp=ramp), progress) == pytest.approx(expected, abs=1e-9)


def test_before_the_first_point_its_value_holds():
    assert schedule_at(plain_config(schedule={0.5: 0.3, 1.0: 1.0}), 0.1) == 0.3
    assert (
        schedule_at(plain_config(schedule={0.5: 0.3}), 0.1)
        == schedule_at(plain_config(schedule={0.5: 0.3}), 0.9)
        == 0.3
    )


def test_points_may_come_in_any_order_and_as_text():
    config = plain_config(schedule={"0.8": "0.5", 0.4: 1, "0.2": 0})
    assert config.schedule == SCHEDULE and list(config.schedule) == [0.2, 0.4, 0.8]


def test_without_a_schedule_the_strength_is_whole():
    assert schedule_at(plain_config(), None) == 1.0


def test_a_schedule_needs_the_progress():
    with pytest.raises(ValueError, match=r"schedule=\{0.0: 1.0\} needs the progress of training: .*progress="):
        schedule_at(plain_config(schedule={0: 1}), None)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_strength_is_the_share_of_the_partners_weight(strength):
    full = Planner(plain_config(alpha=1.0), 0).draw(Examples(64)).lam
    weak = Planner(plain_config(alpha=1.0, schedule={0: strength}), 0).draw(Examples(64, progress=0.5)).lam
    torch.testing.assert_close(1 - weak, strength * (1 - full))


def test_strength_0_is_a_clean_batch_that_draws_nothing():
    planner, other = (Planner(plain_config(schedule={0: 0, 1: 1})) for _ in range(2))
    plan = planner.draw(Examples(4, progress=0.0))
    assert not plan.active and plan.lam.tolist() == [1.0] * 4
    assert planner.generator.bit_generator.state == other.generator.bit_generator.state


def test_a_warm_up_grows_from_batch_to_batch_and_multiplies_the_schedule():
    warm = Planner(plain_config(alpha=1.0, warmup_batches=4, schedule={0: 0.5}))
    full = Planner(plain_config(alpha=1.0))
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
        weak = warm.draw(Examples(64, progress=0.5))
        torch.testing.assert_close(1 - weak.lam, 0.5 * share * (1 - full.draw(Examples(64)).lam))


def test_the_fixed_recipe_warms_up_over_a_hundred_batches():
    planner = Planner(resolve_config("fixed"))
    strengths = [planner.draw(Examples(64, [0])).strength for _ in range(102)]
    assert strengths == pytest.approx([number / 100 for number in range(1, 101)] + [1, 1])


def test_a_warm_up_resumes():
    planner, other = (Planner(plain_config(alpha=1.0, warmup_batches=10), seed) for seed in (0, 1))
    for _ in range(3):
        planner.draw(Examples(64))
    other.load_state_dict(json.loads(json.dumps(planner.state_dict())))
    assert torch.equal(other.draw(Examples(64)).lam, planner.draw(Examples(64)).lam)


@pytest.mark.parametrize(("epoch", "expected"), [(0.0, 0.1), (1.99, 0.1), (2.0, 0.4), (2.5, 0.4), (5, 2.0), (9, 2.0)])
def test_alpha_is_that_of_the_latest_epoch_that_has_begun(epoch, expected):
    assert at_epoch("alpha", plain_config(alpha={5: 2.0, 0: 0.1, "2": 0.4}).alpha, epoch) == expected


def test_before_its_first_epoch_alpha_is_the_first_one():
    assert at_epoch("alpha", {3: 2.0, 1: 0.5}, 0.0) == 0.5


def test_alpha_by_epoch_needs_the_epoch():
    with pytest.raises(ValueError, match=r"alpha=\{0.0: 0.1\} needs the progress of training: .*epoch="):
        Planner(plain_config(alpha={0: 0.1}), 0).draw(Examples(4))


@pytest.mark.parametrize(("epoch", "alpha"), [(0.5, 0.1), (3.0, 8.0)])
def test_lambda_is_drawn_from_the_alpha_of_the_epoch(epoch, alpha):
    config = plain_config(alpha={0: 0.1, 1: 8.0})
    lam = draw_lambda(np.random.default_rng(0), 2000, config, epoch)
    assert stats.kstest(lam[lam < 1], stats.beta(alpha, alpha).cdf).pvalue > 1e-3 or alpha < 1
    assert abs(lam - 0.5).mean() == pytest.approx(
        abs(stats.beta(alpha, alpha).rvs(20_000, random_state=0) - 0.5).mean(), abs=0.02
    )


def test_beta_stays_while_alpha_changes():
    lam = draw_lambda(np.random.default_rng(0), 3000, plain_config(alpha={0: 1.0, 1: 4.0}, beta=2.0), 1.0)
    assert stats.kstest(lam, stats.beta(4.0, 2.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize("lam", [0.3, 0.7, 0.0])
def test_a_fixed_lambda_is_what_was_said_with_the_default_too(lam):
    assert (draw_lambda(np.random.default_rng(0), 3, MixupConfig(lam=lam)) == np.float32(lam)).all()


def test_a_lambda_for_each_dimension_weakens_and_dominates_alike():
    config = plain_config(interpolation="dimensions", alpha=1.0, dominant=True, schedule={0: 0.5})
    plan = Planner(config, 0).draw(Examples(5, progress=0.0, widths={None: 40}))
    assert plan.dimension_lam.shape == (5, 40) and plan.dimension_lam.min() >= 0.75
    torch.testing.assert_close(plan.lam, plan.dimension_lam.mean(1))


LAM, PARTNER = torch.tensor([0.2, 0.5, 0.6, 0.9]), torch.tensor([1, 0, 3, 2])


@pytest.mark.parametrize(("rule", "expected"), [("own", [1, 1, 1, 1]), ("larger", [0, 1, 1, 1])])
def test_label_rules_that_need_no_labels(rule, expected):
    assert label_lambda(plain_config(label_rule=rule), LAM, PARTNER, None).tolist() == expected


def remixed(counts, lam, labels=(0, 1), **fields):
    config = plain_config(label_rule="remix", class_counts=counts, **fields)
    examples = Examples(len(labels), targets=torch.eye(2)[list(labels)])
    return label_lambda(config, torch.tensor(lam), torch.tensor([1, 0]), examples).tolist()


@pytest.mark.parametrize(
    ("counts", "lam", "expected"),
    [
        ([30.0, 10.0], [0.25, 0.25], [0.0, 0.25]),
        ([30.0, 10.0], [0.75, 0.75], [0.75, 1.0]),
        ([30.0, 10.0], [0.5, 0.5], [0.5, 0.5]),
        ([10.0, 30.0], [0.75, 0.25], [1.0, 0.0]),
        ([29.0, 10.0], [0.25, 0.75], [0.25, 0.75]),
    ],
)
def test_remix_favours_the_rare_class_from_kappa_on(counts, lam, expected):
    assert remixed(counts, lam) == expected


def test_kappa_and_tau_are_the_users():
    assert remixed([20.0, 10.0], [0.25, 0.75], kappa=2.0) == [0.0, 1.0]
    assert remixed([30.0, 10.0], [0.25, 0.75], tau=0.2) == [0.25, 0.75]
    assert remixed([30.0, 10.0], [0.75, 0.25], tau=1.0) == [0.0, 1.0]
    assert remixed([30.0, 10.0], [0.25, 0.75], tau=0.0) == [0.25, 0.75]


@pytest.mark.parametrize("counts", [[0.0, 10.0], [10.0, 0.0]])
def test_remix_has_no_nan_for_a_class_that_was_not_counted(counts):
    assert all(
        0 <= value <= 1 for value in remixed(counts, [0.25, 0.75], labels=(0, 0)) + remixed(counts, [0.25, 0.75])
    )
