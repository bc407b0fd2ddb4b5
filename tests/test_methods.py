"""Every recipe against the formula of its paper, read here once more in NumPy: loops over examples and positions."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup import Mixup, MixupModel, MixupPlan
from hf_mixup.config.recipes import recipe_names, resolve_config
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.planner import Planner
from hf_mixup.training.collator import MixupCollator
from tests.architectures import build
from tests.forward.anatomy.test_images_and_sounds import toy
from tests.methods import OF_PIXELS, OF_TOKENS, OF_UNLABELED
from tests.plain_config import plain_config
from tests.zoo import FAMILIES, WIDTH, cached_toy_model, toy_batch, toy_model

CLASSES, SIZE = 3, 6
SEEDS = range(4)
# The partners of these depend on nothing but their labels and groups, and their mixture is a line.
ON_A_LINE = {
    "default": "hidden",
    "fixed": "hidden",
    "embed_mix": "embeddings",
    "reg_mixup": "embeddings",
    "remix": "embeddings",
    "mixup_io": "embeddings",
    "intra_class": "embeddings",
    "balanced": "embeddings",
    "word_mixup": "word_embeddings",
    "manifold": "hidden",
    "tmix": "hidden",
    "inter_lada": "hidden",
    "sent_mixup": "pooled",
    "lisa": "pooled",
    "mixup_transformer": "pooled",
    "aum_guided": "pooled",
}
COUNTS = [90.0, 30.0, 7.0]


def config_of(recipe):
    config = resolve_config(recipe)
    return replace(config, class_counts=COUNTS) if config.label_rule == "remix" else config


def model_of(recipe):
    return cached_toy_model("bert", num_hidden_layers=4 if resolve_config(recipe).site == "hidden" else 2)


def mixup_of(recipe, seed=0):
    """After the warm-up, if there is one, and at full strength."""
    mixup = Mixup(model_of(recipe), config_of(recipe), seed=seed)
    if mixup.config.strength == "auto":
        mixup.planner.observe(torch.ones(9))
    mixup.planner.drawn = mixup.config.warmup_batches
    return mixup


def examples_of(seed, size=SIZE, low=3, high=15, segments=False):
    generator = np.random.default_rng(seed)
    lengths = tuple(int(length) for length in generator.integers(low, high, size))
    labels = torch.from_numpy(generator.integers(0, CLASSES, size))
    groups = torch.from_numpy(generator.integers(0, 2, size))
    return toy_batch(lengths, seed=seed, segments=segments), labels, groups


def draw(mixup, batch, labels, groups=None, **kwargs):
    return mixup.draw(batch, **({"progress": 0.75, "labels": labels, "groups": groups} | kwargs))


def run(model, batch, mixup=None, plan=None):
    """What enters each block of a BERT, what leaves the last one, and the logits; mixed where there is a plan."""
    seen, blocks = [], model.bert.encoder.layer
    with nullcontext() if plan is None else mixup.apply(plan, batch), torch.no_grad():
        handles = [block.register_forward_pre_hook(lambda m, args: seen.append(args[0].numpy())) for block in blocks]
        handles.append(blocks[-1].register_forward_hook(lambda m, args, output: seen.append(output.numpy())))
        logits = model(**batch).logits
        for handle in handles:
            handle.remove()
    return seen, logits


def tokens_entering(model, batch, mixup, plan):
    seen = []
    with mixup.apply(plan, batch), torch.no_grad():
        handle = model.bert.embeddings.register_forward_pre_hook(
            lambda m, args, kwargs: seen.append(kwargs["input_ids"] if "input_ids" in kwargs else args[0]),
            with_kwargs=True,
        )
        logits = model(**batch).logits
        handle.remove()
    return seen[0].tolist(), logits


def mixture(states, mask, partner, lam):
    """lam h_i + (1 - lam) h_j where both texts have a token, that of the one that has where only one has, else nan."""
    mixed = np.full(states.shape, np.nan)
    for i, j in enumerate(partner.tolist()):
        for t in range(states.shape[1]):
            if mask[i, t] and mask[j, t]:
                mixed[i, t] = lam[i] * states[i, t] + (1 - lam[i]) * states[j, t]
            elif mask[i, t] or mask[j, t]:
                mixed[i, t] = states[i, t] if mask[i, t] else states[j, t]
    return mixed


def assert_states_equal(states, expected):
    is_token = ~np.isnan(expected)
    np.testing.assert_allclose(states[is_token], expected[is_token], rtol=1e-4, atol=1e-5)


def mixed_labels(labels, partner, lam):
    rows = np.zeros((len(labels), CLASSES))
    for i, j in enumerate(partner.tolist()):
        rows[i, labels[i]] += lam[i]
        rows[i, labels[j]] += 1 - lam[i]
    return rows


def cross_entropy(logits, targets):
    logits = logits.double().numpy()
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        total -= (target * (row - np.log(np.exp(row).sum()))).sum()
    return total / len(logits)


def lookup_of(model, batch):
    """Token, position and segment embeddings of BERT, summed."""
    table, length = model.bert.embeddings, batch["input_ids"].shape[1]
    summed = table.word_embeddings.weight[batch["input_ids"]] + table.position_embeddings.weight[:length]
    return (summed + table.token_type_embeddings.weight[0]).detach().numpy()


def label_lambda_of(recipe, lam, labels, partner):
    """The weight of each example's own label by the rule of the recipe."""
    weights = []
    for i, j in enumerate(partner.tolist()):
        own, ratio = float(lam[i]), COUNTS[labels[i]] / COUNTS[labels[j]]
        if recipe == "mixup_io":
            own = 1.0 if own > 0.5 else 0.0
        elif recipe == "remix" and ratio >= 3 and own < 0.5:
            own = 0.0
        elif recipe == "remix" and ratio <= 1 / 3 and 1 - own < 0.5:
            own = 1.0
        weights.append(own)
    return weights


def loss_share_of_the_clean_batch(recipe):
    return {"reg_mixup": 0.5, "aum_guided": 0.8}.get(recipe, 0.0)


def test_every_recipe_is_tested_here():
    tested = set(ON_A_LINE) | {name for name in recipe_names() if any(f"test_{name}_" in test for test in globals())}
    others = {*OF_UNLABELED, *OF_TOKENS}
    assert set(recipe_names()) - others == tested, "those are in test_unlabeled_methods and test_token_methods"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("recipe", ON_A_LINE)
def test_states_targets_and_loss_are_those_of_the_formula(recipe, seed):
    mixup, model = mixup_of(recipe, seed), model_of(recipe)
    batch, labels, groups = examples_of(seed)
    mask = batch["attention_mask"].bool().numpy()
    clean, clean_logits = run(model, batch)
    for _ in range(3):
        plan = draw(mixup, batch, labels, groups)
        mixed, logits = run(model, batch, mixup, plan)
        lam, partner = plan.lam.double().numpy(), plan.partner
        if ON_A_LINE[recipe] == "pooled":
            pooled = model.bert(**batch).pooler_output.detach().numpy()
            head = model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()
            for i, j in enumerate(partner.tolist()):
                expected = (lam[i] * pooled[i] + (1 - lam[i]) * pooled[j]) @ head[0].T + head[1]
                np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-5)
        elif ON_A_LINE[recipe] == "word_embeddings":
            expected = torch.from_numpy(mixture(lookup_of(model, batch), mask, partner, lam)).float()
            assert_states_equal(mixed[0], model.bert.embeddings.LayerNorm(expected).detach().numpy())
        else:
            above = 0 if plan.layer is None else plan.layer + 1
            assert_states_equal(mixed[above], mixture(clean[above], mask, partner, lam))
            for below in range(above):
                np.testing.assert_array_equal(mixed[below], clean[below])
        targets = mixed_labels(labels, partner, label_lambda_of(recipe, lam, labels, partner))
        np.testing.assert_allclose(mixup.targets(labels, plan), targets, atol=1e-6)
        share = loss_share_of_the_clean_batch(recipe)
        expected = (1 - share) * cross_entropy(logits, targets)
        expected += share * cross_entropy(clean_logits, np.eye(CLASSES)[labels])
        loss = mixup.loss(logits, labels, plan, clean_logits=clean_logits if share else None)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


# Alpha, whether lambda is max(lambda, 1 - lambda), and whether a batch shares one, as the papers or their code have it.
LAMBDAS = {
    "default": (2.0, True, False),
    "fixed": (2.0, True, False),
    "embed_mix": (0.2, True, True),
    "word_mixup": (1.0, False, False),
    "sent_mixup": (1.0, False, False),
    "manifold": (2.0, False, True),
    "tmix": (2.0, True, True),
    "inter_lada": ((60.0, 1.5), False, True),
    "reg_mixup": (10.0, False, True),
    "c_mixup": (2.0, False, True),
    "lisa": (2.0, False, False),
    "remix": (1.0, False, True),
    "aum_guided": (0.4, False, True),
    "noisy_feature": (1.0, False, True),
    "mixup_io": (1.0, False, False),
    "intra_class": (1.0, False, False),
    "balanced": (0.4, False, False),
}


@pytest.mark.parametrize("recipe", LAMBDAS)
def test_lambda_is_distributed_as_the_paper_says(recipe):
    alpha, is_dominant, is_shared = LAMBDAS[recipe]
    mixup = mixup_of(recipe)
    batch, labels, groups = examples_of(0)
    lam = np.stack([draw(mixup, batch, labels, groups).lam.numpy() for _ in range(600)])
    assert (np.ptp(lam, axis=1) == 0).all() == is_shared
    cdf = stats.beta(*(alpha if isinstance(alpha, tuple) else (alpha, alpha))).cdf
    folded = (lambda x: cdf(x) - cdf(1 - x)) if is_dominant else cdf
    assert stats.kstest(lam[:, 0], folded).pvalue > 1e-3


@pytest.mark.parametrize(
    ("recipe", "depth", "layers"),
    [
        ("manifold", 12, [-1, 2, 5, 8]),
        ("manifold", 4, [-1, 0, 1, 2]),
        ("noisy_feature", 12, [-1, 2, 5, 8]),
        ("tmix", 12, [6, 8, 11]),
        ("tmix", 24, [13, 17, 23]),
        ("inter_lada", 12, [7, 8, 9]),
    ],
)
def test_the_layers_are_those_of_the_paper(recipe, depth, layers):
    assert resolve_config(recipe).resolve_layers(depth) == layers


def test_manifold_draws_the_embeddings_as_often_as_each_block():
    mixup, (batch, labels, groups) = mixup_of("manifold"), examples_of(0)
    drawn = [(plan.site, plan.layer) for plan in (draw(mixup, batch, labels, groups) for _ in range(400))]
    places = [("embeddings", None), ("hidden", 0), ("hidden", 1), ("hidden", 2)]
    counts = [drawn.count(place) for place in places]
    assert sum(counts) == 400 and stats.chisquare(counts).pvalue > 1e-3


def test_mixup_transformer_is_clean_in_the_first_half_and_even_in_the_second():
    mixup, batch = mixup_of("mixup_transformer"), toy_batch((5, 7, 4, 9, 6, 3))
    for progress in (0.0, 0.25, 0.49):
        assert not mixup.draw(batch, progress=progress).active
    for progress in (0.5, 0.75, 1.0):
        plan = mixup.draw(batch, progress=progress)
        assert plan.active and plan.lam.tolist() == [0.5] * SIZE


def saliency_by_hand(model, batch, labels):
    leaves = []

    def make_leaf(module, args, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    handle = model.bert.embeddings.register_forward_hook(make_leaf)
    scores = model(**batch).logits.log_softmax(-1)
    handle.remove()
    (gradient,) = torch.autograd.grad(-sum(scores[i, label] for i, label in enumerate(labels.tolist())), leaves)
    return gradient.square().mean(-1).sqrt().numpy()


def windows(values, positions, width):
    return [np.mean([values[t] for t in positions[k : k + width]]) for k in range(len(positions) - width + 1)]


def replaceable(batch, i, segment):
    """Positions of a segment but for the special tokens: the first of the text, the last of the segment."""
    types = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
    inside = [t for t, kept in enumerate(batch["attention_mask"][i]) if kept and types[i, t] == segment]
    return inside[1:-1] if segment == 0 else inside[:-1]


def ssmix_by_hand(batch, saliency, partner):
    ids = batch["input_ids"].tolist()
    mixed, lam = [list(row) for row in ids], []
    for i, j in enumerate(partner.tolist()):
        replaced = total = 0
        for segment in range(2):
            own, other = replaceable(batch, i, segment), replaceable(batch, j, segment)
            width = max(len(own) * 10 // 100, 1)
            total += len(own)
            if len(own) < width or len(other) < width:
                continue
            start = int(np.argmin(windows(saliency[i], own, width)))
            taken = int(np.argmax(windows(saliency[j], other, width)))
            for k in range(width):
                mixed[i][own[start + k]] = ids[j][other[taken + k]]
            replaced += width
        lam.append(1 - replaced / total if total else 1.0)
    return mixed, lam


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_ssmix_swaps_the_least_salient_span_for_the_most_salient_one(seed, segments):
    mixup, model = mixup_of("ssmix", seed), model_of("ssmix")
    lengths = [(40, 3, 25, 33, 2, 12), (31, 40, 40, 22, 5, 39), (2, 3, 4, 5), (36, 30, 24)][seed]
    batch = toy_batch(lengths, seed=seed, segments=segments)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, len(lengths)))
    plan = draw(mixup, batch, labels)
    assert (plan.partner != torch.arange(len(lengths))).all()
    expected, lam = ssmix_by_hand(batch, saliency_by_hand(model, batch, labels), plan.partner)
    ids, logits = tokens_entering(model, batch, mixup, plan)
    assert ids == expected
    np.testing.assert_allclose(plan.lam, lam, atol=1e-6)
    targets = mixed_labels(labels, plan.partner, lam)
    np.testing.assert_allclose(mixup.targets(labels, plan), targets, atol=1e-6)
    _, clean_logits = run(model, batch)
    expected_loss = (cross_entropy(clean_logits, np.eye(CLASSES)[labels]) + cross_entropy(logits, targets)) / 2
    assert mixup.loss(logits, labels, plan, clean_logits=clean_logits).item() == pytest.approx(expected_loss, rel=1e-5)


def test_ssmix_leaves_no_text_as_it_was_where_spans_fit():
    batch, labels, _ = examples_of(0, low=8, high=30)
    plan = draw(mixup_of("ssmix"), batch, labels)
    assert (plan.lam < 1).all() and (plan.lam > 0.75).all()


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_span_mix_takes_one_span_of_the_same_share_in_each_segment(seed, segments):
    mixup, model = mixup_of("span_mix", seed), model_of("span_mix")
    batch, labels, _ = examples_of(seed, low=2, high=30, segments=segments)
    ids = batch["input_ids"].tolist()
    for _ in range(10):
        plan = draw(mixup, batch, labels)
        entered, logits = tokens_entering(model, batch, mixup, plan)
        # 1 - lambda, one number for all of the batch, lies between these.
        low, high = 0.0, 1.0
        expected_lam = []
        for i, j in enumerate(plan.partner.tolist()):
            replaced = total = 0
            for segment in range(2 if segments else 1):
                own, other = replaceable(batch, i, segment), replaceable(batch, j, segment)
                taken = [(t, int(plan.source[i, t])) for t in own if plan.source[i, t] >= 0]
                replaced, total, width = replaced + len(taken), total + len(own), len(taken)
                if not taken and i == j:
                    continue
                if not taken:
                    low = max(low, (len(other) + 1) / len(own)) if 0 < len(other) < len(own) else low
                    assert len(other) < len(own) or not own
                    continue
                assert [t for t, _ in taken] == list(range(taken[0][0], taken[0][0] + width))
                assert [s for _, s in taken] == list(range(taken[0][1], taken[0][1] + width))
                assert {s for _, s in taken} <= set(other)
                low, high = max(low, 0 if width == 1 else width / len(own)), min(high, (width + 1) / len(own))
            assert (plan.source[i] >= 0).sum() == replaced
            expected_lam.append(1 - replaced / total if total else 1.0)
            for t, token in enumerate(ids[i]):
                source = int(plan.source[i, t])
                assert entered[i][t] == (token if source < 0 else ids[j][source])
        assert low <= high + 1e-3
        np.testing.assert_allclose(plan.lam, expected_lam, atol=1e-6)
        targets = mixed_labels(labels, plan.partner, expected_lam)
        assert mixup.loss(logits, labels, plan).item() == pytest.approx(cross_entropy(logits, targets), rel=1e-5)


def test_span_mix_takes_every_share_alike():
    mixup, batch = mixup_of("span_mix"), toy_batch((39, 39))
    plans = [draw(mixup, batch, None) for _ in range(1200)]
    lam = np.array([float(plan.lam[0]) for plan in plans if plan.partner[0] == 1])
    # Of 37 tokens as many as a uniform share makes, and at least one.
    counts = np.bincount(np.round(37 * (1 - lam)).astype(int), minlength=38)
    expected = np.array([2, *[1] * 35])
    assert counts[0] == 0 and stats.chisquare(counts[1:37], expected * counts[1:37].sum() / 37).pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_nonlinear_mixup_has_a_lambda_for_each_dimension_and_the_label_follows_their_mean(seed):
    mixup, model = mixup_of("nonlinear_mixup", seed), model_of("nonlinear_mixup")
    batch, labels, _ = examples_of(seed)
    plan = draw(mixup, batch, labels)
    lam = plan.dimension_lam.double().numpy()
    assert lam.shape == (SIZE, WIDTH) and np.unique(lam).size == SIZE * WIDTH
    expected = mixture(lookup_of(model, batch), batch["attention_mask"].bool().numpy(), plan.partner, lam)
    mixed, logits = run(model, batch, mixup, plan)
    normed = model.bert.embeddings.LayerNorm(torch.from_numpy(expected).float()).detach().numpy()
    assert_states_equal(mixed[0], normed)
    targets = mixed_labels(labels, plan.partner, lam.mean(1))
    np.testing.assert_allclose(mixup.targets(labels, plan), targets, atol=1e-5)
    assert mixup.loss(logits, labels, plan).item() == pytest.approx(cross_entropy(logits, targets), rel=1e-4)


def test_nonlinear_mixup_draws_each_dimension_uniformly():
    mixup, (batch, labels, _) = mixup_of("nonlinear_mixup"), examples_of(0)
    lam = np.concatenate([draw(mixup, batch, labels).dimension_lam.numpy().ravel() for _ in range(10)])
    assert stats.kstest(lam, "uniform").pvalue > 1e-3


def test_c_mixup_draws_partners_by_the_kernel_of_the_distance_between_scores():
    model = cached_toy_model("bert", num_labels=1)
    mixup, batch = Mixup(model, "c_mixup"), toy_batch((8, 5, 9, 4, 6))
    scores = torch.tensor([0.0, 0.5, 1.0, 2.2, 5.0])
    partners = np.stack([draw(mixup, batch, scores).partner.numpy() for _ in range(2500)])
    for i, own in enumerate(scores.tolist()):
        kernel = [np.exp(-((own - other) ** 2) / 2) if j != i else 0.0 for j, other in enumerate(scores.tolist())]
        expected = 2500 * np.array(kernel) / sum(kernel)
        counts = np.bincount(partners[:, i], minlength=5)
        assert counts[i] == 0
        usual = expected > 5
        assert counts[~usual].sum() < 30
        expected = expected[usual] * counts[usual].sum() / expected[usual].sum()
        assert usual.sum() == 1 or stats.chisquare(counts[usual], expected).pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_c_mixup_mixes_scores_and_takes_the_squared_error(seed):
    model = cached_toy_model("bert", num_labels=1)
    mixup, (batch, _, _) = Mixup(model, "c_mixup", seed=seed), examples_of(seed)
    scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    plan = draw(mixup, batch, scores)
    _, clean = run(model, batch)
    _, logits = run(model, batch, mixup, plan)
    lam = plan.lam.double().numpy()
    errors = []
    for i, j in enumerate(plan.partner.tolist()):
        assert float(logits[i, 0]) == pytest.approx(
            lam[i] * float(clean[i, 0]) + (1 - lam[i]) * float(clean[j, 0]), abs=1e-5
        )
        errors.append((float(logits[i, 0]) - lam[i] * float(scores[i]) - (1 - lam[i]) * float(scores[j])) ** 2)
    assert mixup.loss(logits, scores, plan).item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_lisa_mixes_one_label_across_groups_or_one_group_across_labels():
    mixup, batch = mixup_of("lisa"), toy_batch((5, 4, 6, 7, 5, 4, 3, 8))
    labels = torch.tensor([0, 0, 1, 1, 0, 1, 1, 2])
    groups = torch.tensor([0, 1, 0, 1, 0, 0, 1, 2])
    same_label = 0
    for _ in range(400):
        partner = draw(mixup, batch, labels, groups).partner.tolist()
        assert partner.pop() == 7
        pairs = [(int(labels[i] == labels[j]), int(groups[i] == groups[j])) for i, j in enumerate(partner)]
        assert set(pairs) in ({(1, 0)}, {(0, 1)})
        same_label += pairs[0] == (1, 0)
    assert stats.binomtest(same_label, 400, 0.5).pvalue > 1e-3


def test_remix_meets_all_of_its_cases():
    mixup, (batch, _, _), labels = mixup_of("remix"), examples_of(0), torch.tensor([0, 0, 1, 1, 2, 2])
    kinds = set()
    for _ in range(50):
        plan = draw(mixup, batch, labels)
        for own, label in zip(plan.lam.tolist(), plan.label_lam.tolist(), strict=True):
            kinds.add("as mixed" if own == label else label)
    assert kinds == {"as mixed", 0.0, 1.0}


def test_remix_in_a_small_example_by_hand():
    config = replace(resolve_config("remix"), class_counts=[30.0, 10.0], lam=0.4)
    mixup = Mixup(cached_toy_model("bert", num_labels=2), config)
    batch, labels = toy_batch((4, 5)), torch.tensor([0, 1])
    plans = [draw(mixup, batch, labels) for _ in range(20)]
    plan = next(plan for plan in plans if plan.partner.tolist() == [1, 0])
    # The frequent text holds 0.4 of itself, so the rare label takes all of it; the rare text holds less than half.
    assert plan.label_lam.tolist() == [0.0, pytest.approx(0.4)]


def test_mixup_io_gives_all_of_the_label_to_the_one_that_weighs_more():
    mixup, (batch, labels, _) = mixup_of("mixup_io"), examples_of(1)
    plan = draw(mixup, batch, labels)
    for i, j in enumerate(plan.partner.tolist()):
        winner = labels[i] if plan.lam[i] > 0.5 else labels[j]
        assert mixup.targets(labels, plan)[i].tolist() == np.eye(CLASSES)[winner].tolist()


def test_intra_class_keeps_every_label():
    mixup, (batch, _, _), labels = mixup_of("intra_class"), examples_of(0), torch.tensor([0, 1, 0, 1, 1, 2])
    partners = []
    for _ in range(200):
        plan = draw(mixup, batch, labels)
        partners.append(plan.partner.tolist())
        np.testing.assert_allclose(mixup.targets(labels, plan), np.eye(CLASSES)[labels])
    seen = [set(column) for column in zip(*partners, strict=True)]
    assert seen == [{2}, {3, 4}, {0}, {1, 4}, {1, 3}, {5}]


def test_balanced_draws_every_class_as_often():
    mixup, labels = mixup_of("balanced"), torch.tensor([0] * 9 + [1] * 3 + [2] * 2)
    batch = toy_batch((4,) * 14)
    partners = np.stack([draw(mixup, batch, labels).partner.numpy() for _ in range(1500)])
    for i in range(14):
        counts = np.bincount(labels.numpy()[partners[:, i]], minlength=3)
        assert stats.chisquare(counts).pvalue > 1e-4, (i, counts)
        assert (partners[:, i] != i).all()


def test_aum_guided_records_the_mean_margin_of_every_visit():
    mixup, generator = mixup_of("aum_guided"), np.random.default_rng(0)
    lengths, labels = (5, 9, 4, 7, 6, 8), generator.integers(0, CLASSES, 6)
    batch = toy_batch(lengths)
    visits = {i: [] for i in range(6)}
    for _ in range(5):
        rows = generator.permutation(6)[:4]
        longest = max(lengths[i] for i in rows)
        part = {name: value[torch.from_numpy(rows), :longest] for name, value in batch.items()}
        logits = torch.from_numpy(generator.normal(size=(4, CLASSES))).float()
        plan = draw(mixup, part, torch.from_numpy(labels[rows]))
        with mixup.apply(plan, part):
            mixed_logits = mixup.model(**part).logits
        mixup.loss(mixed_logits, torch.from_numpy(labels[rows]), plan, clean_logits=logits)
        for i, row in zip(rows, logits.numpy(), strict=True):
            visits[i].append(row[labels[i]] - max(row[c] for c in range(CLASSES) if c != labels[i]))
    expected = [np.mean(margins) if margins else 0.0 for margins in visits.values()]
    assert min(len(margins) for margins in visits.values()) >= 1
    np.testing.assert_allclose(mixup.planner.margins.of(mixup.planner.margins.places(batch)), expected, atol=1e-6)
    half = set(np.argsort(expected)[:3])
    partners = np.stack([draw(mixup, batch, torch.from_numpy(labels)).partner.numpy() for _ in range(300)])
    for i in range(6):
        counts = np.bincount(partners[:, i], minlength=6)
        others = [j for j in range(6) if (j in half) != (i in half)]
        assert counts[others].sum() == 300 and stats.chisquare(counts[others]).pvalue > 1e-4


def noisy_and_plain(mixup, batch, plan, noise, seed=0):
    above = 0 if plan.layer is None else plan.layer + 1
    torch.manual_seed(seed)
    noisy, _ = run(mixup.model, batch, mixup, replace(plan, noise=noise))
    plain, _ = run(mixup.model, batch, mixup, replace(plan, noise=None))
    return noisy[above], plain[above]


@pytest.mark.parametrize("seed", SEEDS)
def test_noisy_feature_adds_normal_and_multiplies_by_uniform_noise(seed):
    model = toy_model("bert", num_hidden_layers=4)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight *= 4
    mixup, batch = Mixup(model, "noisy_feature", seed=seed), toy_batch((12,) * 12, seed=seed)
    plan = draw(mixup, batch, None)
    additive, multiplicative = plan.noise
    noisy, plain = noisy_and_plain(mixup, batch, plan, (additive, 0.0))
    scale = np.sqrt(np.mean([value**2 for value in plain.ravel()]))
    assert stats.kstest((noisy - plain).ravel() / (additive * scale), "norm").pvalue > 1e-3
    noisy, plain = noisy_and_plain(mixup, batch, plan, (0.0, multiplicative))
    is_large = np.abs(plain) > 0.05
    ratio = (noisy / plain - 1)[is_large] / multiplicative
    assert stats.kstest(ratio, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    both, plain = noisy_and_plain(mixup, batch, plan, plan.noise)
    expected = multiplicative**2 / 3 * np.mean(plain**2) + additive**2 * scale**2
    assert np.mean((both - plain) ** 2) == pytest.approx(expected, rel=0.15)


def test_noisy_feature_draws_the_strength_of_both_noises_from_beta_2_5():
    mixup, batch = mixup_of("noisy_feature"), toy_batch()
    noise = np.array([draw(mixup, batch, None).noise for _ in range(500)])
    for column, level in zip(noise.T, (0.4, 0.2), strict=True):
        assert stats.kstest(column / level, stats.beta(2, 5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.2


def test_noisy_feature_is_the_same_for_the_same_seed_of_torch():
    mixup, batch = mixup_of("noisy_feature"), toy_batch()
    plan = draw(mixup, batch, None)
    first, plain = noisy_and_plain(mixup, batch, plan, plan.noise, seed=1)
    again, _ = noisy_and_plain(mixup, batch, plan, plan.noise, seed=1)
    other, _ = noisy_and_plain(mixup, batch, plan, plan.noise, seed=2)
    assert np.array_equal(first, again) and not np.array_equal(first, other) and not np.array_equal(first, plain)


@pytest.mark.parametrize("seed", SEEDS)
def test_noisy_feature_without_noise_is_manifold_mixup(seed):
    mixup = mixup_of("noisy_feature", seed)
    batch, labels, _ = examples_of(seed)
    plan = draw(mixup, batch, labels)
    above = 0 if plan.layer is None else plan.layer + 1
    clean, _ = run(mixup.model, batch)
    mixed, logits = run(mixup.model, batch, mixup, replace(plan, noise=None))
    mask = batch["attention_mask"].bool().numpy()
    assert_states_equal(mixed[above], mixture(clean[above], mask, plan.partner, plan.lam.numpy()))
    targets = mixed_labels(labels, plan.partner, plan.lam.numpy())
    np.testing.assert_allclose(mixup.targets(labels, plan), targets, atol=1e-6)


def similarity_by_hand(states, mask, partner, scale=1.0, width=0.5):
    """tau of each pair: scale exp(-(d / mean d - 1) / (2 width^2)), d the squared distance of mean states."""
    means = [np.mean([states[i, t] for t in range(mask.shape[1]) if mask[i, t]], axis=0) for i in range(len(states))]
    distance = [((means[i] - means[j]) ** 2).sum() for i, j in enumerate(partner.tolist())]
    return [scale * np.exp(-(d / np.mean(distance) - 1) / (2 * width**2)) for d in distance]


def repeated(batch, partner, times):
    """The same texts many times over, with the same partners: the same distances, and as many draws."""
    size = len(partner)
    many = {name: value.repeat(times, 1) for name, value in batch.items()}
    return many, torch.cat([partner + size * k for k in range(times)])


@pytest.mark.parametrize("seed", SEEDS)
def test_warped_draws_lambda_from_a_beta_of_the_distance(seed):
    mixup, model, times = mixup_of("warped", seed), model_of("warped"), 400
    batch, labels, _ = examples_of(seed)
    plan = draw(mixup, batch, labels)
    clean, _ = run(model, batch)
    taus = similarity_by_hand(clean[0], batch["attention_mask"].numpy(), plan.partner)
    many, partner = repeated(batch, plan.partner, times)
    uniform = 1 - torch.rand(2, len(partner), generator=torch.Generator().manual_seed(seed))
    large = replace(plan, partner=partner, lam=torch.ones(len(partner)), uniform=uniform)
    mixed, _ = run(model, many, mixup, large)
    lam = large.resolved.lam
    assert torch.isfinite(lam).all() and (lam >= 0).all() and (lam <= 1).all()
    for drawn, tau, j, i in zip(lam.view(times, SIZE).T, taus, plan.partner.tolist(), range(SIZE), strict=True):
        if i == j:
            continue
        spread = float((drawn - 0.5).abs().mean())
        expected = np.abs(stats.beta(max(tau, 1e-3), max(tau, 1e-3)).rvs(20_000, random_state=0) - 0.5).mean()
        assert spread == pytest.approx(expected, abs=0.03), tau
        if tau > 0.2:
            assert stats.kstest(drawn.double().numpy(), stats.beta(tau, tau).cdf).pvalue > 1e-3
    states, mask = np.tile(clean[0], (times, 1, 1)), many["attention_mask"].bool().numpy()
    rows = slice(0, 3 * SIZE)
    expected = mixture(states[rows], mask[rows], partner[rows], lam.double().numpy()[rows])
    assert_states_equal(mixed[0][rows], expected)
    labels = labels.repeat(times)
    targets = mixed_labels(labels, partner, lam.double().numpy())
    np.testing.assert_allclose(mixup.targets(labels, large), targets, atol=1e-6)


def test_warped_hardly_mixes_a_pair_that_is_far_apart():
    model = toy_model("bert", num_hidden_layers=1)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7:9] += 30 * torch.randn(2, WIDTH)
    mixup = Mixup(model, "warped")
    ids = torch.full((16, 6), 20)
    ids[:, 1] = torch.arange(40, 56)
    ids[0], ids[1] = 7, 8
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    drawn, generator = draw(mixup, batch, None), torch.Generator().manual_seed(0)
    distances = []
    for _ in range(100):
        uniform = 1 - torch.rand(2, 16, generator=generator)
        plan = replace(drawn, partner=torch.arange(16) ^ 1, uniform=uniform)
        run(model, batch, mixup, plan)
        lam = plan.resolved.lam
        distances += torch.minimum(lam, 1 - lam)[:2].tolist()
    assert np.isfinite(distances).all() and np.mean(distances) < 0.01


def test_a_schedule_weakens_the_lambda_that_is_drawn_at_the_site():
    batch, labels, _ = examples_of(0)
    lambdas = []
    for strength in (1.0, 0.25):
        mixup = Mixup(model_of("warped"), replace(resolve_config("warped"), schedule={0: strength}))
        plan = draw(mixup, batch, labels)
        torch.manual_seed(0)
        run(mixup.model, batch, mixup, plan)
        lambdas.append(plan.resolved.lam)
    assert lambdas[0].min() < 0.75
    torch.testing.assert_close(1 - lambdas[1], 0.25 * (1 - lambdas[0]))


UNIFORM = torch.tensor([[0.3, 0.8, 0.1, 0.6], [0.2, 0.7, 0.9, 0.4]])
# A head with a reading rule of its own, a mask at the entrance, states of another length than the mask.
OTHER_SHAPES = ("eurobert", "t5gemma", "xlm", "canine", "funnel", "perceiver")


@pytest.mark.parametrize("family", [*FAMILIES, *OTHER_SHAPES])
def test_warped_mixes_everything_by_the_lambda_that_it_reports(family):
    model = cached_toy_model(family) if family in FAMILIES else build(family)
    batch, sites = toy_batch(), {"embeddings": None, "hidden": 1}
    mixup = Mixup(model, "sent_mixup")
    for site, layer in sites.items():
        plan = MixupPlan(
            torch.tensor([2, 0, 3, 1]), torch.full((4,), 0.9), site, layer, similarity=(1.0, 0.5), uniform=UNIFORM
        )
        torch.manual_seed(0)
        try:
            with torch.no_grad(), mixup.apply(plan, batch):
                logits = model(**batch).logits
        except ValueError as error:
            assert family not in FAMILIES and "similarity" in str(error)
            continue
        settled = plan.resolved
        assert (settled.lam != plan.lam).all()
        with torch.no_grad(), mixup.apply(replace(settled, similarity=None), batch):
            torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["larger", "remix"])
def test_similarity_with_a_label_rule_is_refused_or_follows_the_lambda_at_the_site(rule):
    counts = {"class_counts": COUNTS} if rule == "remix" else {}
    try:
        mixup = Mixup(model_of("warped"), plain_config(alpha=2.0, similarity=1.0, label_rule=rule, **counts))
    except ValueError as error:
        assert "similarity" in str(error)
        return
    batch, labels, _ = examples_of(0)
    plan = draw(mixup, batch, labels)
    for seed in range(5):
        torch.manual_seed(seed)
        run(mixup.model, batch, mixup, plan)
        settled, name = plan.resolved, {"larger": "mixup_io"}.get(rule, rule)
        expected = label_lambda_of(name, settled.lam, labels, plan.partner)
        np.testing.assert_allclose(settled.label_lam, expected, atol=1e-6)


def test_similarity_with_dimensions_is_refused_or_mixes_by_both_alike():
    try:
        mixup = Mixup(model_of("warped"), plain_config(alpha=2.0, similarity=1.0, interpolation="dimensions"))
    except ValueError as error:
        assert "similarity" in str(error)
        return
    batch, labels, _ = examples_of(0)
    plan = draw(mixup, batch, labels)
    run(mixup.model, batch, mixup, plan)
    settled = plan.resolved
    torch.testing.assert_close(settled.dimension_lam.mean(1), settled.lam)


CASES = [(family, site) for family in FAMILIES for site in ("word_embeddings", "embeddings", "hidden")]


@pytest.mark.parametrize(("family", "site"), CASES)
def test_a_lambda_for_each_dimension_is_exact_at_both_ends_and_no_line_between(family, site):
    model, batch = cached_toy_model(family), toy_batch()
    mixup = Mixup(model, plain_config(site=site, interpolation="dimensions"))
    plan = mixup.draw(batch)

    def logits_of(plan):
        with torch.no_grad(), mixup.apply(plan, batch):
            return model(**batch).logits

    with torch.no_grad():
        clean = model(**batch).logits
    end = torch.tensor([0.0, 1.0, 1.0, 0.0])
    at_the_end = replace(plan, lam=end, dimension_lam=end.unsqueeze(1).expand_as(plan.dimension_lam))
    expected = torch.where(end.bool().unsqueeze(1), clean, clean[plan.partner])
    torch.testing.assert_close(logits_of(at_the_end), expected, rtol=1e-4, atol=1e-4)
    assert (logits_of(plan) - logits_of(replace(plan, dimension_lam=None))).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_that_is_nearly_none_changes_nearly_nothing(family):
    model, batch = cached_toy_model(family), toy_batch()
    mixup = Mixup(model, "sent_mixup")
    plan = MixupPlan(torch.tensor([2, 0, 3, 1]), torch.tensor([0.1, 0.9, 0.2, 0.8]), "hidden", 1)
    logits = []
    for noise in (None, (1e-6, 1e-6), (0.5, 0.5)):
        with torch.no_grad(), mixup.apply(replace(plan, noise=noise), batch):
            logits.append(model(**batch).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
    assert (logits[2] - logits[0]).abs().max() > 1e-3


def test_input_mixup_averages_the_numbers_themselves():
    pixels, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 1, 2, 1, 0])

    def stack(features):
        return {"pixel_values": pixels, "labels": labels, "index": torch.arange(5)}

    collator = MixupCollator(stack, "input_mixup", CLASSES, seed=3)
    first = None
    lambdas = []
    for _ in range(200):
        plans = []
        drawing = collator._draw
        collator._draw = lambda *args, drawing=drawing, plans=plans: plans.append(drawing(*args)) or plans[0]
        batch = collator([None] * 5)
        del collator._draw
        lam, partner = plans[0].lam.numpy(), plans[0].partner
        assert np.ptp(lam) == 0
        lambdas.append(lam[0])
        if first is None:
            first = batch
            for i, j in enumerate(partner.tolist()):
                expected = lam[i] * pixels[i].numpy() + (1 - lam[i]) * pixels[j].numpy()
                np.testing.assert_allclose(batch["pixel_values"][i], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(batch["labels"], mixed_labels(labels, partner, lam), atol=1e-6)
    assert stats.kstest(lambdas, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_cutmix_takes_a_box_of_the_partner_and_the_label_follows_its_area(seed):
    mixup = Mixup(toy("vit"), "cutmix", seed=seed)
    generator = np.random.default_rng(seed)
    pixels = torch.from_numpy(generator.normal(size=(SIZE, 3, 32, 32))).float()
    labels = torch.from_numpy(generator.integers(0, CLASSES, SIZE))
    entered = []
    handle = mixup.model.vit.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    for _ in range(5):
        plan = mixup.draw({"pixel_values": pixels})
        with mixup.apply(plan, {"pixel_values": pixels}), torch.no_grad():
            logits = mixup.model(pixel_values=pixels).logits
        image, sides, expected_lam = entered.pop().numpy(), set(), []
        for i, j in enumerate(plan.partner.tolist()):
            expected = pixels[i].numpy().copy()
            top, bottom, left, right = plan.box[i].tolist()
            expected[:, top:bottom, left:right] = pixels[j, :, top:bottom, left:right]
            np.testing.assert_array_equal(image[i], expected)
            sides |= {bottom - top} if top > 0 and bottom < 32 else set()
            expected_lam.append(1 - (bottom - top) * (right - left) / 32**2)
        # One lambda a batch, so that boxes which are not cut off have one size.
        assert len(sides) <= 1
        np.testing.assert_allclose(plan.lam, expected_lam, atol=1e-6)
        targets = mixed_labels(labels, plan.partner, expected_lam)
        assert mixup.loss(logits, labels, plan).item() == pytest.approx(cross_entropy(logits, targets), rel=1e-5)
    handle.remove()


def test_cutmix_draws_the_area_of_its_boxes_uniformly():
    planner, images = Planner(resolve_config("cutmix")), {"pixel_values": torch.zeros(64, 3, 100, 100)}
    drawn = []
    for _ in range(300):
        box = planner.draw(Examples(64, inputs=images)).box
        # One of 64 boxes is not cut off, if it is not large.
        drawn.append(1 - (box[:, 1] - box[:, 0]).max().item() * (box[:, 3] - box[:, 2]).max().item() / 100**2)
    large = [lam for lam in drawn if lam < 0.3]
    assert stats.kstest([lam for lam in drawn if lam > 0.3], stats.uniform(0.3, 0.7).cdf).pvalue > 1e-3
    assert stats.binomtest(len(large), 300, 0.3).pvalue > 1e-3


@pytest.mark.parametrize(
    "recipe", [name for name in recipe_names() if name not in (*OF_PIXELS, *OF_TOKENS, *OF_UNLABELED)]
)
def test_every_recipe_trains_a_mixup_model(recipe):
    batch, labels, groups = examples_of(0)
    model = MixupModel(toy_model("bert", num_hidden_layers=2).train(), config_of(recipe))
    model.mixup_progress = 0.75
    loss = model(**batch, labels=labels, **({"group": groups} if recipe == "lisa" else {})).loss
    loss.backward()
    gradient = model.bert.embeddings.word_embeddings.weight.grad
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_a_method_may_be_changed_in_one_field():
    config = plain_config(**(resolve_config("tmix").to_dict() | {"alpha": 0.2}))
    assert (config.alpha, config.layers, config.dominant) == (0.2, ["7/12", "9/12", "12/12"], True)
