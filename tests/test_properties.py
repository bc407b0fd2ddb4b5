"""What holds for every batch, mask, label and config, on examples that hypothesis looks for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig

from hf_mixup import Mixup, MixupPlan
from hf_mixup.forward.anatomy.masks import mix_rows, position_weights
from hf_mixup.loss.task import Task
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.margins import Margins
from hf_mixup.plan.planner import Planner
from hf_mixup.plan.spans import plan_spans, swap_tokens
from tests.plain_config import plain_config
from tests.zoo import VOCAB, cached_toy_model

WITH_MODEL = settings(max_examples=50, deadline=None, database=None, derandomize=True)

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1, allow_subnormal=False)
positive = st.floats(0.01, 50)


def on_examples(*strategies):
    """Makes a property a test on a few examples, and a slow test on many."""

    def test_of(check):
        @pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
        def test(count):
            settings(WITH_MODEL, max_examples=count)(given(*strategies)(check))()

        test.__name__ = check.__name__
        return test

    return test_of


@st.composite
def texts(draw, max_size=6, max_length=12, min_length=0):
    """Tokens and a mask of texts with unequal lengths, padded on one side."""
    size, side = draw(st.integers(2, max_size)), draw(st.sampled_from(["left", "right"]))
    lengths = draw(st.lists(st.integers(min_length, max_length), min_size=size, max_size=size))
    width = max(*lengths, 1)
    position = torch.arange(width)
    length = torch.tensor(lengths).unsqueeze(1)
    mask = (position < length if side == "right" else position >= width - length).long()
    generator = torch.Generator().manual_seed(draw(seeds))
    ids = torch.randint(5, VOCAB, (size, width), generator=generator)
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}, side


@st.composite
def pairs_of_texts(draw):
    """As `texts`, with the segments of pairs: the second may be empty, or all of the text."""
    batch, side = draw(texts())
    if draw(st.booleans()):
        cuts = draw(st.lists(shares, min_size=len(batch["input_ids"]), max_size=len(batch["input_ids"])))
        order = batch["attention_mask"].cumsum(1) * batch["attention_mask"]
        cut = (torch.tensor(cuts).unsqueeze(1) * batch["attention_mask"].sum(1, keepdim=True)).round()
        batch["token_type_ids"] = ((order > cut) & (order > 0)).long()
    return batch, side


@st.composite
def configs(draw):
    fields = {
        "alpha": draw(st.one_of(positive, st.just({0: 0.2, 1: 3.0}))),
        "beta": draw(st.one_of(st.none(), positive)),
        "lam": draw(st.one_of(st.none(), shares)),
        "dominant": draw(st.booleans()),
        "mode": draw(st.sampled_from(["elem", "batch"])),
        "prob": draw(shares),
        "self_pairs": draw(st.booleans()),
        "warmup_batches": draw(st.integers(0, 5)),
        "schedule": draw(st.one_of(st.none(), st.dictionaries(shares, shares, min_size=1, max_size=4))),
        "ramp": draw(st.sampled_from(["linear", "cosine", "step"])),
        "partner": draw(
            st.sampled_from(["random", "same_class", "other_class", "near_label", "balanced", "lisa", "margin"])
        ),
        "label_rule": draw(st.sampled_from(["lambda", "remix", "larger", "own"])),
        "interpolation": draw(st.sampled_from(["line", "dimensions", "span"])),
    }
    if fields["interpolation"] == "dimensions":
        fields["mode"] = "elem"
    if fields["schedule"] is None:
        fields["ramp"] = "linear"
    if fields["partner"] != "random":
        fields["self_pairs"] = True
    if fields["interpolation"] == "span":
        fields["site"] = "input"
    if fields["partner"] == "margin":
        fields["clean_weight"] = 0.5
    if fields["label_rule"] == "remix":
        fields |= {"kappa": draw(st.floats(1, 10)), "tau": draw(shares)}
    return fields


def planner_and_task(fields, classes, seed):
    if fields["label_rule"] == "remix":
        fields = fields | {"class_counts": [float(3**k) for k in range(classes)]}
    about = PretrainedConfig()
    about.num_labels, about.problem_type = classes, "single_label_classification"
    config = plain_config(**fields)
    return Planner(config, seed), Task(about, config)


@on_examples(configs(), texts(), st.integers(2, 5), seeds, shares, st.floats(0, 3), st.booleans())
def test_plans_are_weights_and_targets_are_distributions(fields, batch_and_side, classes, seed, progress, epoch, hard):
    batch, size = batch_and_side[0], len(batch_and_side[0]["input_ids"])
    generator = np.random.default_rng(seed)
    labels = torch.from_numpy(generator.integers(0, classes, size))
    if not hard:
        labels = torch.from_numpy(generator.dirichlet([0.5] * classes, size)).float()
    groups = torch.from_numpy(generator.integers(0, 2, size))
    planner, task = planner_and_task(fields, classes, seed)
    clean = task.targets(labels)
    plan = planner.draw(Examples(size, (), {None: 4}, epoch, progress, batch, clean, groups))
    assert plan.partner.shape == (size,) and plan.partner.min() >= 0 and plan.partner.max() < size
    for weights in (plan.lam, plan.label_lam, plan.dimension_lam):
        assert weights is None or (weights >= 0).all() and (weights <= 1).all()
    targets = task.targets(labels, plan)
    assert targets.shape == (size, classes) and targets.min() >= 0 and targets.max() <= 1 + 1e-6
    torch.testing.assert_close(targets.sum(1), torch.ones(size), rtol=0, atol=1e-5)
    if not plan.active or fields["label_rule"] == "own":
        assert torch.equal(targets, clean)
    elif fields["partner"] == "same_class" and hard:
        torch.testing.assert_close(targets, clean)
    elif fields["partner"] != "random" and fields["partner"] not in ("near_label", "balanced", "margin") and hard:
        alike = labels[plan.partner] == labels
        assert fields["partner"] == "lisa" or (~alike | (plan.partner == torch.arange(size))).all()
    if fields["dominant"] and fields.get("lam") is None and plan.active and plan.source is None:
        assert (plan.lam >= 0.5 - 1e-6).all()


@on_examples(st.integers(1, 40), seeds, st.booleans())
def test_random_partners_are_a_permutation(size, seed, self_pairs):
    plan = Planner(plain_config(self_pairs=self_pairs), seed).draw(Examples(size))
    assert plan.partner.sort().values.tolist() == list(range(size))
    assert self_pairs or size < 2 or (plan.partner != torch.arange(size)).all()


def random_plan(size, seed, site="embeddings", layer=None):
    generator = np.random.default_rng(seed)
    lam = generator.random(size).astype(np.float32)
    lam[generator.random(size) < 0.2] = generator.integers(0, 2)
    return MixupPlan(torch.from_numpy(generator.integers(0, size, size)), torch.from_numpy(lam), site, layer)


def padded(batch, columns, side):
    """The same batch with more padding: other tokens there, and a mask that hides them."""
    widths = (columns, 0) if side == "left" else (0, columns)
    longer = {name: torch.nn.functional.pad(value, widths) for name, value in batch.items()}
    longer["input_ids"] = torch.nn.functional.pad(batch["input_ids"], widths, value=1)
    return longer


@on_examples(pairs_of_texts(), seeds, shares, st.booleans(), st.integers(1, 5))
def test_spans_stay_inside_both_texts_and_padding_does_not_move_them(pairs, seed, share, is_salient, columns):
    batch, side = pairs
    mask, size = batch["attention_mask"], len(batch["input_ids"])
    plan = random_plan(size, seed)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(2, 2, size, generator=generator)
    lam = torch.full((size,), share)
    saliency = torch.rand(mask.shape, generator=generator) if is_salient else None
    source, new = plan_spans(lam, plan.partner, mask, batch.get("token_type_ids"), uniform, saliency)
    for i, j in enumerate(plan.partner.tolist()):
        own, other = mask[i].nonzero().squeeze(1).tolist(), mask[j].nonzero().squeeze(1).tolist()
        pairs_taken = [(t, s) for t, s in enumerate(source[i].tolist()) if s >= 0]
        types = batch.get("token_type_ids", torch.zeros_like(mask))
        first_segment_starts = types[i, own[0]] == 0 if own else True
        for t, s in pairs_taken:
            assert t in own and t != own[-1] and s in other and s != other[-1]
            assert not (first_segment_starts and t == own[0])
            assert types[i, t] == types[j, s]
        assert 0 <= new[i] <= 1 and (new[i] == 1) == (not pairs_taken)
        if share == 1:
            assert not pairs_taken
    longer = padded(batch, columns, side)
    if saliency is not None:
        saliency = padded({"input_ids": batch["input_ids"], "saliency": saliency}, columns, side)["saliency"]
    again, same = plan_spans(
        lam, plan.partner, longer["attention_mask"], longer.get("token_type_ids"), uniform, saliency
    )
    assert torch.equal(new, same)
    kept = again[:, columns:] if side == "left" else again[:, : mask.shape[1]]
    moved = torch.where(kept >= 0, kept - (columns if side == "left" else 0), kept)
    ids = swap_tokens(batch["input_ids"], plan.partner, source)
    torch.testing.assert_close(swap_tokens(batch["input_ids"], plan.partner, moved), ids)
    assert (again >= 0).sum() == (source >= 0).sum()


@on_examples(texts(), seeds, st.integers(1, 5), st.booleans())
def test_mixtures_are_between_their_texts_and_free_of_padding(batch_and_side, seed, columns, per_dimension):
    batch, side = batch_and_side
    mask, plan = batch["attention_mask"], random_plan(len(batch["input_ids"]), seed)
    lam = torch.rand(len(mask), 3, generator=torch.Generator().manual_seed(seed)) if per_dimension else plan.lam
    values = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(seed))
    mixed = mix_rows(values, plan.partner, position_weights(lam, plan.partner, mask, mask.shape[1], None))
    for i, j in enumerate(plan.partner.tolist()):
        weight = lam[i].double()
        for t in range(mask.shape[1]):
            own, other = values[i, t].double(), values[j, t].double()
            if mask[i, t] and mask[j, t]:
                expected = weight * own + (1 - weight) * other
            elif mask[i, t] or mask[j, t]:
                expected = own if mask[i, t] else other
            else:
                continue
            torch.testing.assert_close(mixed[i, t].double(), expected, rtol=1e-5, atol=1e-6)
    longer = padded(batch, columns, side)["attention_mask"]
    weights = position_weights(lam, plan.partner, longer, longer.shape[1], None)
    kept = weights[:, columns:] if side == "left" else weights[:, : mask.shape[1]]
    assert torch.equal(kept, position_weights(lam, plan.partner, mask, mask.shape[1], None))


def permuted(batch, plan, order):
    """The batch in another order, and the plan that pairs the same texts."""
    where = order.argsort()
    moved = {name: value[order] for name, value in batch.items()}
    return moved, MixupPlan(where[plan.partner[order]], plan.lam[order], plan.site, plan.layer)


@on_examples(st.integers(2, 12), st.integers(2, 5), seeds)
def test_the_order_of_a_batch_is_that_of_its_targets(size, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(size, classes, generator=generator).softmax(1)
    order, plan = torch.randperm(size, generator=generator), random_plan(size, seed)
    moved, moved_plan = permuted({"clean": clean}, plan, order)
    assert torch.equal(moved_plan.mix(moved["clean"]), plan.mix(clean)[order])


@on_examples(texts(min_length=1), st.integers(1, 5), seeds)
def test_margins_know_a_text_whatever_its_padding_and_place(batch_and_side, columns, seed):
    batch, side = batch_and_side
    margins, order = Margins(), torch.randperm(len(batch["input_ids"]), generator=torch.Generator().manual_seed(seed))
    places = margins.places(batch)
    assert torch.equal(margins.places(padded(batch, columns, side)), places)
    assert torch.equal(margins.places({name: value[order] for name, value in batch.items()}), places[order])
    rows = [tuple(row[kept.bool()].tolist()) for row, kept in zip(*batch.values(), strict=True)]
    assert len(set(rows)) == len(places.unique())


SITES = [("word_embeddings", None), ("embeddings", None), ("hidden", 0), ("hidden", 2), ("pooled", None)]


def logits_of(mixup, batch, plan):
    with torch.no_grad(), mixup.apply(plan, batch):
        return mixup.model(**batch).logits


@pytest.fixture(scope="module")
def mixups():
    model = cached_toy_model("bert")
    return {site: Mixup(model, plain_config(site=site)) for site, _ in SITES}


@WITH_MODEL
@given(texts(min_length=1), seeds, st.integers(1, 5), st.sampled_from(SITES))
def test_more_padding_leaves_the_logits_as_they_are(mixups, batch_and_side, seed, columns, where):
    batch, _ = batch_and_side
    # A first-token head reads padding on the left, which is a text to it.
    batch = {
        name: torch.where(batch["attention_mask"][:, :1] == 1, value, value.flip(1)) for name, value in batch.items()
    }
    plan = random_plan(len(batch["input_ids"]), seed, *where)
    logits = logits_of(mixups[where[0]], batch, plan)
    longer = logits_of(mixups[where[0]], padded(batch, columns, "right"), plan)
    torch.testing.assert_close(longer, logits, rtol=1e-4, atol=1e-4)


@WITH_MODEL
@given(texts(min_length=1), seeds, st.sampled_from(SITES))
def test_the_order_of_a_batch_is_that_of_its_logits(mixups, batch_and_side, seed, where):
    batch, _ = batch_and_side
    plan = random_plan(len(batch["input_ids"]), seed, *where)
    order = torch.randperm(len(batch["input_ids"]), generator=torch.Generator().manual_seed(seed))
    moved, moved_plan = permuted(batch, plan, order)
    logits = logits_of(mixups[where[0]], batch, plan)
    torch.testing.assert_close(logits_of(mixups[where[0]], moved, moved_plan), logits[order], rtol=1e-4, atol=1e-4)


@WITH_MODEL
@given(texts(min_length=1), seeds, st.sampled_from(SITES))
def test_at_the_ends_the_logits_are_those_of_one_text(mixups, batch_and_side, seed, where):
    batch, _ = batch_and_side
    plan = random_plan(len(batch["input_ids"]), seed, *where)
    ends = MixupPlan(plan.partner, plan.lam.round(), plan.site, plan.layer)
    with torch.no_grad():
        clean = mixups[where[0]].model(**batch).logits
    expected = torch.where(ends.lam.bool().unsqueeze(1), clean, clean[ends.partner])
    torch.testing.assert_close(logits_of(mixups[where[0]], batch, ends), expected, rtol=1e-4, atol=1e-4)
