"""`Mixup` against slow references written in plain torch: two forward passes, explicit loops."""

import copy
import warnings
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from hf_mixup import Mixup, MixupPlan
from hf_mixup.forward.anatomy import masks
from tests.flex_on_cpu import flex_on_cpu
from tests.plain_config import plain_config
from tests.zoo import VOCAB, WIDTH, cached_toy_model, toy_batch, toy_model

PARTNER = torch.tensor([2, 0, 3, 1])
LAM = torch.tensor([0.9, 0.25, 0.5, 0.6])


def bert_reference(model, batch, layer, partner, lam):
    """Mixup after `layer` blocks of BERT in its own formula: every text run alone, position by position."""
    bert = model.bert
    logits = []
    for i, j in enumerate(partner.tolist()):
        ids = [batch["input_ids"][k][batch["attention_mask"][k].bool()] for k in (i, j)]
        states = [bert.embeddings(text.unsqueeze(0)) for text in ids]
        for block in bert.encoder.layer[:layer]:
            states = [block(state) for state in states]
        lengths = [text.numel() for text in ids]
        weight = lam[i]
        hidden, bias = [], []
        for t in range(max(lengths)):
            if t < min(lengths):
                hidden.append(weight * states[0][0, t] + (1 - weight) * states[1][0, t])
                bias.append(torch.tensor(0.0))
            elif t < lengths[0]:
                hidden.append(states[0][0, t])
                bias.append(weight.log())
            else:
                hidden.append(states[1][0, t])
                bias.append((1 - weight).log())
        mixed = torch.stack(hidden).unsqueeze(0)
        for block in bert.encoder.layer[layer:]:
            mixed = block(mixed, attention_mask=torch.stack(bias).view(1, 1, 1, -1))
        logits.append(model.classifier(bert.pooler(mixed)))
    return torch.cat(logits)


def two_term_loss(logits, labels, partner, lam, problem_type):
    total = torch.tensor(0.0)
    for i, j in enumerate(partner.tolist()):
        for weight, k in ((lam[i], i), (1 - lam[i], j)):
            if problem_type == "single_label_classification":
                total = total - weight * F.log_softmax(logits[i], -1)[labels[k]]
            else:
                p = torch.sigmoid(logits[i])
                total = total - weight * (labels[k] * p.log() + (1 - labels[k]) * (1 - p).log()).mean()
    return total / len(partner)


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_mixed_loss_and_gradients_equal_those_of_the_slow_reference(layer):
    model, slow = toy_model("bert", "eager"), toy_model("bert", "eager")
    batch, labels = toy_batch(), torch.tensor([0, 2, 1, 1])
    site = "embeddings" if layer < 0 else "hidden"
    mixup = Mixup(model, plain_config(site=site))
    plan = MixupPlan(PARTNER, LAM, site, None if layer < 0 else layer)
    with mixup.apply(plan, batch):
        logits = model(**batch).logits
    loss = mixup.loss(logits, labels, plan)
    loss.backward()
    slow_logits = bert_reference(slow, batch, layer + 1, PARTNER, LAM)
    slow_loss = two_term_loss(slow_logits, labels, PARTNER, LAM, "single_label_classification")
    slow_loss.backward()
    torch.testing.assert_close(logits, slow_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, slow_loss, rtol=1e-5, atol=1e-6)
    for (name, parameter), other in zip(model.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("changes", "labels", "problem_type"),
    [
        ({}, torch.tensor([0, 2, 1, 1]), "single_label_classification"),
        ({}, torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]), "multi_label_classification"),
    ],
)
def test_loss_equals_the_two_terms(changes, labels, problem_type):
    mixup = Mixup(cached_toy_model("bert"))
    logits = torch.randn(4, 3)
    loss = mixup.loss(logits, labels, MixupPlan(PARTNER, LAM, "embeddings"))
    torch.testing.assert_close(loss, two_term_loss(logits, labels, PARTNER, LAM, problem_type))


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_mixes_scores(outputs):
    mixup = Mixup(toy_model("bert", num_labels=outputs, problem_type="regression"))
    scores = torch.randn(4, outputs) if outputs > 1 else torch.randn(4)
    logits = torch.randn(4, outputs)
    loss = mixup.loss(logits, scores, MixupPlan(PARTNER, LAM, "embeddings"))
    rows = scores.reshape(4, outputs)
    expected = sum(((logits[i] - (LAM[i] * rows[i] + (1 - LAM[i]) * rows[PARTNER[i]])) ** 2).mean() for i in range(4))
    torch.testing.assert_close(loss, expected / 4)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, torch.tensor([0, 2, 1, 1])),
        ({}, torch.rand(4, 3).round()),
        ({"num_labels": 1}, torch.randn(4)),
        ({"num_labels": 1}, torch.randn(4, 1)),
        ({"problem_type": "regression"}, torch.randn(4, 3)),
    ],
)
def test_a_clean_batch_has_the_models_own_loss(changes, labels):
    model, batch = toy_model("bert", **changes), toy_batch()
    loss = Mixup(model).loss(model(**batch).logits, labels)
    torch.testing.assert_close(loss, copy.deepcopy(model)(**batch, labels=labels).loss)
    assert model.config.problem_type == changes.get("problem_type")


def test_class_probabilities_are_mixed_as_they_are():
    mixup = Mixup(toy_model("bert", problem_type="single_label_classification"))
    probabilities = torch.softmax(torch.randn(4, 3), -1)
    mixed = mixup.targets(probabilities, MixupPlan(PARTNER, LAM, "embeddings"))
    for i in range(4):
        expected = LAM[i] * probabilities[i] + (1 - LAM[i]) * probabilities[PARTNER[i]]
        torch.testing.assert_close(mixed[i], expected)


def test_class_weights_and_label_smoothing_follow_their_definition():
    weights = [0.5, 2.0, 1.0]
    mixup = Mixup(cached_toy_model("bert"), plain_config(class_weights=weights))
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    loss = mixup.loss(logits, labels, MixupPlan(PARTNER, LAM, "embeddings"), label_smoothing=0.1)
    expected = 0.0
    for i, j in enumerate(PARTNER.tolist()):
        target = torch.zeros(3)
        target[labels[i]] += LAM[i]
        target[labels[j]] += 1 - LAM[i]
        target = 0.9 * target + 0.1 / 3
        expected = expected - (torch.tensor(weights) * target * F.log_softmax(logits[i], -1)).sum() / 4
    torch.testing.assert_close(loss, expected)


def test_pooled_mixing_is_mixing_what_enters_the_last_layer():
    model, batch = cached_toy_model("bert"), toy_batch()
    with Mixup(model, "sent_mixup").apply(plan := MixupPlan(PARTNER, LAM, "pooled"), batch):
        logits = model(**batch).logits
    pooled = model.bert(**batch).pooler_output
    mixed = LAM.unsqueeze(1) * pooled + (1 - LAM).unsqueeze(1) * pooled[plan.partner]
    torch.testing.assert_close(logits, model.classifier(mixed), rtol=1e-4, atol=1e-5)


def test_word_embeddings_are_mixed_before_the_norm_and_embeddings_after():
    model, batch = cached_toy_model("bert"), toy_batch(lengths=(6, 6, 6, 6))
    embeddings, lam = model.bert.embeddings, LAM.view(-1, 1, 1)
    lookup = embeddings.word_embeddings(batch["input_ids"]) + embeddings.position_embeddings.weight[:6]
    lookup = lookup + embeddings.token_type_embeddings.weight[0]
    normed = embeddings.LayerNorm(lookup)
    expected = {
        "word_embeddings": embeddings.LayerNorm(lam * lookup + (1 - lam) * lookup[PARTNER]),
        "embeddings": lam * normed + (1 - lam) * normed[PARTNER],
    }
    for site in expected:
        seen = []
        with Mixup(model, plain_config(site=site)).apply(MixupPlan(PARTNER, LAM, site), batch):
            watch = model.bert.encoder.layer[0].register_forward_pre_hook(
                lambda m, args, seen=seen: seen.append(args[0])
            )
            model(**batch)
            watch.remove()
        torch.testing.assert_close(seen[0], expected[site], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden", "pooled"])
def test_no_site_costs_a_second_forward_pass(site):
    model, batch = cached_toy_model("bert", "sdpa"), toy_batch()
    mixup, calls = Mixup(model, plain_config(site=site)), []
    with mixup.apply(MixupPlan(PARTNER, LAM, site, 1 if site == "hidden" else None), batch):
        watch = model.bert.encoder.layer[0].register_forward_hook(lambda *args: calls.append(tuple(args[2].shape)))
        model(**batch)
        watch.remove()
    assert calls == [(4, 16, WIDTH)]


def test_hooks_are_gone_after_the_block_and_after_an_exception():
    model, batch = toy_model("t5"), toy_batch()
    mixup = Mixup(model, plain_config(site="word_embeddings"))
    clean = model(**batch).logits
    plan = MixupPlan(PARTNER, LAM, "word_embeddings")
    with pytest.raises(KeyError), mixup.apply(plan, batch):
        raise KeyError("a loop of one's own may fail")
    with mixup.apply(plan, batch):
        mixed = model(**batch).logits
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(**batch).logits, clean) and not torch.equal(mixed, clean)


def test_nested_plans_and_unreached_sites_are_errors():
    model, batch = toy_model("bert"), toy_batch()
    mixup, other = Mixup(model), Mixup(model)
    plan = MixupPlan(PARTNER, LAM, "embeddings")
    with pytest.raises(RuntimeError, match="already under way"), mixup.apply(plan, batch), other.apply(plan, batch):
        pass
    with pytest.raises(RuntimeError, match="No forward pass reached site 'embeddings'"), mixup.apply(plan, batch):
        pass


def test_a_decoder_text_of_ones_own_is_refused():
    mixup, batch = Mixup(cached_toy_model("t5")), toy_batch()
    batch["decoder_input_ids"] = batch["input_ids"]
    with (
        pytest.raises(ValueError, match="decoder_input_ids: leave it out"),
        mixup.apply(MixupPlan(PARTNER, LAM, "embeddings"), batch),
    ):
        pass


@pytest.mark.parametrize(
    ("plan_size", "batch", "message"),
    [
        (3, toy_batch(), "plan is for a batch of 3, this batch has 4"),
        (4, {"attention_mask": torch.ones(4, 5)}, "no input_ids"),
        (4, {"input_ids": None, "attention_mask": torch.ones(4, 5)}, "no input_ids"),
        (4, toy_batch() | {"attention_mask": torch.ones(4, 1, 16, 16)}, r"attention_mask: shape \(4, 1, 16, 16\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(plan_size, batch, message):
    mixup = Mixup(cached_toy_model("bert"))
    plan = MixupPlan(torch.arange(plan_size), torch.ones(plan_size) / 2, "embeddings")
    with pytest.raises(ValueError, match=message), mixup.apply(plan, batch):
        pass


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "found 0 to 3, but the model has num_labels=3.*0 to 2"),
        (torch.tensor([0, 1, 2, -100]), "found -100 to 2"),
        (torch.zeros(4, 2), r"shape \(4, 2\) for multi_label_classification with num_labels=3"),
        (None, "labels: none in this training batch"),
        ([0, 1, 2, 0], "labels: expected a tensor, got list"),
    ],
)
def test_labels_that_cannot_be_trained_on_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        Mixup(cached_toy_model("bert")).loss(torch.zeros(4, 3), labels)


def test_equal_texts_and_batches_without_padding_or_mask_work():
    model = cached_toy_model("bert")
    ids = torch.randint(5, VOCAB, (1, 8)).expand(4, 8)
    clean = model(input_ids=ids).logits
    for batch in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": torch.ones(4, 8)}):
        with Mixup(model).apply(MixupPlan(PARTNER, LAM, "embeddings"), batch):
            torch.testing.assert_close(model(**batch).logits, clean, rtol=1e-4, atol=1e-5)


def test_class_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="class_weights: 2 weights for num_labels=3"):
        Mixup(cached_toy_model("bert"), plain_config(class_weights=[1.0, 2.0]))


def test_a_state_continues_the_stream():
    mixup, batch = Mixup(cached_toy_model("bert"), seed=3), toy_batch()
    mixup.draw(batch)
    state = mixup.state_dict()
    expected = mixup.draw(batch)
    other = Mixup(cached_toy_model("bert"), seed=4)
    other.load_state_dict(state)
    plan = other.draw(batch)
    assert torch.equal(plan.partner, expected.partner) and torch.equal(plan.lam, expected.lam)


@pytest.mark.parametrize(("family", "site"), [("bert", "word_embeddings"), ("llama", "embeddings"), ("gpt2", "pooled")])
def test_embeddings_given_by_the_user_are_refused_where_the_tokens_are_needed(family, site):
    batch = {"inputs_embeds": torch.randn(4, 6, WIDTH), "attention_mask": torch.ones(4, 6)}
    mixup = Mixup(cached_toy_model(family), plain_config(site=site))
    with (
        pytest.raises(ValueError, match=f"inputs_embeds: site '{site}' of this model needs input_ids"),
        mixup.apply(MixupPlan(PARTNER, LAM, site), batch),
    ):
        pass


def test_embeddings_given_by_the_user_are_mixed_where_they_suffice():
    model = cached_toy_model("bert")
    batch = {"inputs_embeds": torch.randn(4, 6, WIDTH), "attention_mask": torch.ones(4, 6)}
    clean = model(**batch).logits
    with Mixup(model).apply(MixupPlan(PARTNER, torch.zeros(4), "embeddings"), batch):
        torch.testing.assert_close(model(**batch).logits, clean[PARTNER], rtol=1e-4, atol=1e-5)


def test_a_config_changed_by_the_user_later_does_not_change_the_mixup():
    config = plain_config()
    mixup = Mixup(cached_toy_model("bert"), config)
    config.prob = 0.0
    assert mixup.draw(toy_batch()).active


def test_labels_for_another_batch_and_names_for_a_model_are_refused():
    with pytest.raises(ValueError, match=r"labels: shape \(3,\) for a plan of 4 examples"):
        Mixup(cached_toy_model("bert")).targets(torch.tensor([0, 1, 2]), MixupPlan(PARTNER, LAM, "embeddings"))
    with pytest.raises(
        ValueError, match=r"model='bert-base': expected a model .* type str. Load it first: AutoModelFor"
    ):
        Mixup("bert-base")
    with pytest.raises(
        ValueError, match=r"model=<object object .*>: expected a model .* got an object of type object.$"
    ):
        Mixup(object())


def test_mixed_labels_without_a_mixed_forward_pass_are_warned_about():
    model, batch, labels = cached_toy_model("bert"), toy_batch(), torch.tensor([0, 2, 1, 1])
    mixup = Mixup(model)
    plan = mixup.draw(batch)
    with pytest.warns(UserWarning, match="no forward pass was run under apply"):
        mixup.loss(model(**batch).logits, labels, plan)
    with mixup.apply(plan, batch):
        logits = model(**batch).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixup.loss(logits, labels, plan)


@pytest.mark.parametrize(("site", "depth"), [("embeddings", 3), ("hidden", 24)])
def test_a_mask_is_mixed_once_a_batch_and_not_once_a_layer(monkeypatch, site, depth):
    model, batch, calls = toy_model("bert", "sdpa", num_hidden_layers=depth), toy_batch(), []
    mixup = Mixup(model, plain_config(site=site))
    original = masks.mix_keep
    monkeypatch.setattr(masks, "mix_keep", lambda *args: calls.append(args[0].shape) or original(*args))
    with mixup.apply(MixupPlan(PARTNER, LAM, site, 1 if site == "hidden" else None), batch):
        model(**batch)
    assert len(calls) == 1


def test_an_unknown_kernel_is_refused_also_when_it_is_set_later():
    model, batch = toy_model("bert", "sdpa"), toy_batch()
    mixup = Mixup(model)
    model.config._attn_implementation = "paged|eager"
    with (
        pytest.raises(ValueError, match=r"attn_implementation='paged\|eager'"),
        mixup.apply(MixupPlan(PARTNER, LAM, "embeddings"), batch),
    ):
        pass


def test_the_check_looks_at_every_pair_at_both_ends(monkeypatch):
    applied = []
    mixing = Mixup._mixing
    monkeypatch.setattr(Mixup, "_mixing", lambda self, plan, batch: applied.append(plan) or mixing(self, plan, batch))
    Mixup(toy_model("bert"))
    lam = torch.stack([plan.lam for plan in applied])
    assert (lam == 0).any(0).all() and (lam == 1).any(0).all()
    assert any((plan.lam[plan.partner][plan.lam == 0] == 0).any() for plan in applied)


@pytest.mark.parametrize("off", [None, "none", False])
def test_mixup_that_is_off_is_refused(off):
    with pytest.raises(ValueError, match=f"config={off!r}: Mixup needs a config"):
        Mixup(toy_model("bert"), off)


def test_progress_is_a_share():
    mixup = Mixup(toy_model("bert"), plain_config(schedule={0: 0, 1: 1}))
    with pytest.raises(ValueError, match="progress=1000: expected the share of the training"):
        mixup.draw(toy_batch(), progress=1000)


def test_layers_that_are_changed_during_a_training_are_drawn():
    mixup = Mixup(toy_model("bert"), plain_config(site="hidden", layers=[0]))
    batch = toy_batch()
    assert mixup.draw(batch).layer == 0
    mixup.config.layers = [2]
    assert mixup.draw(batch).layer == 2
    mixup.config.layers[0] = 1
    assert mixup.draw(batch).layer == 1


@pytest.mark.parametrize("changes", [{"interpolation": "dimensions"}, {"similarity": 1.0, "alpha": 2.0}])
def test_one_lambda_is_refused_where_each_example_has_its_own(changes):
    mixup = Mixup(toy_model("bert"), plain_config(**changes))
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"{name}=.*: not with one_lambda=True; expected"):
        mixup.draw(toy_batch(), one_lambda=True)
    assert len(set(Mixup(toy_model("bert"), plain_config()).draw(toy_batch(), one_lambda=True).lam.tolist())) == 1


@pytest.mark.parametrize(("kernel", "waits"), [("sdpa", False), ("flex_attention", True)])
def test_a_model_that_is_yet_to_be_moved_to_where_its_kernel_runs_is_probed_there(kernel, waits, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    model, batch = toy_model("bert", kernel), toy_batch()
    with flex_on_cpu():
        with patch.object(Mixup, "prepare", autospec=True) as probe:
            mixup = Mixup(model, plain_config())
            assert probe.called != waits
        with mixup.apply(MixupPlan(PARTNER, torch.ones(4), "embeddings"), batch), torch.no_grad():
            model(**batch)
