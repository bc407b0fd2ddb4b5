"""Partners from earlier batches: exact in every family and at every site, one forward pass, a memory that forgets."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ViTConfig, ViTForImageClassification

from hf_mixup import Mixup, MixupModel, MixupPlan, MixupTrainer
from hf_mixup.cli.demo import load_dataset, model_path
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.forward.anatomy.probe import trace
from tests.hosts import BEFORE_5_15
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import arguments, examples, make_trainer, steady_bert, training_inputs
from tests.zoo import FAMILIES, toy_batch, toy_model

SITES = ("word_embeddings", "embeddings", "hidden", "pooled")


def texts_one_by_one(side="right"):
    """Four batches of one text, of four lengths, without padding."""
    batch = toy_batch(side=side)
    rows = []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        rows.append({name: value[row : row + 1, mask] for name, value in batch.items()})
    return rows


def remembering(model, site, lam=None, layer=None, **fields):
    layers = None if layer is None else [layer]
    return Mixup(model, plain_config(site=site, layers=layers, partner="previous_batch", lam=lam, **fields))


def run(mixup, model, inputs, label=0, lam=None):
    plan = mixup.draw(inputs, labels=torch.full((len(inputs["input_ids"]),), label))
    if lam is not None:
        # In place: it is this plan by which the batch is remembered.
        plan.lam.fill_(lam)
    with mixup.apply(plan, inputs):
        logits = model(**inputs).logits
    return plan, logits


def clean(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def layers_of(model, site):
    return range(trace(model).depth) if site == "hidden" else [None]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_text_before_it_is_exact_at_both_ends(family, site):
    model, texts = toy_model(family), texts_one_by_one()
    if family == "t5" and site == "hidden" and BEFORE_5_15:
        with pytest.raises(ValueError, match="position_bias: holds the mask of the batch alone"):
            remembering(model, site)
        return
    logits_of = [clean(model, text) for text in texts]
    for layer in layers_of(model, site):
        mixup = remembering(model, site, 0.5, layer, memory=1)
        with torch.no_grad():
            run(mixup, model, texts[0])
            for before, own, lam in [(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0), (3, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0)]:
                plan, logits = run(mixup, model, texts[own], lam=lam)
                assert plan.outside is not None and plan.partner.tolist() == [1]
                torch.testing.assert_close(logits, logits_of[own if lam else before], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["bert", "llama", "bart", "xlnet", "deberta-v2"])
def test_it_is_what_the_same_pair_gives_in_one_batch(family, site):
    # XLNet reads its last position, whatever is there.
    side = "left" if family == "xlnet" else "right"
    model, (one, other, *_) = toy_model(family), texts_one_by_one(side)
    together = {name: value[:2] for name, value in toy_batch(side=side).items()}
    for layer in layers_of(model, site):
        mixup = remembering(model, site, 0.3, layer, memory=1)
        run(mixup, model, one)
        plan, logits = run(mixup, model, other)
        pair = MixupPlan(torch.tensor([0, 0]), torch.tensor([1.0, 0.3]), plan.site, plan.layer)
        with mixup.apply(pair, together):
            expected = model(**together).logits[1:]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert (logits - clean(model, other)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "xlnet"])
def test_texts_padded_left_are_exact(family):
    model, batch = toy_model(family), toy_batch(side="left")
    other = {name: value[:, :12] for name, value in toy_batch(side="left", lengths=(12, 9, 5, 11)).items()}
    for lam in (0.0, 1.0):
        mixup = remembering(model, "hidden", lam, 1, memory=4)
        with torch.no_grad():
            run(mixup, model, batch)
            plan, logits = run(mixup, model, other)
            both = torch.cat([clean(model, batch), clean(model, other)])
        expected = both[4:] if lam else torch.stack([row for row in both[:4][_rows(plan, batch)]])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def _rows(plan, batch):
    """Which rows of `batch` the guests of a plan are."""
    tokens = batch["input_ids"].tolist()
    return [tokens.index(part["input_ids"][0].tolist()) for part in plan.outside.parts]


def test_the_blocks_run_once_and_for_the_batch_alone():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", 0.5, 1, memory=2)
    run(mixup, model, texts[0])
    rows = []
    for block in model.bert.encoder.layer:
        block.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    run(mixup, model, texts[1])
    assert rows == [1] * len(model.bert.encoder.layer)
    assert not any(hook for module in model.modules() for hook in module._forward_pre_hooks.values())


def test_what_was_stored_takes_no_gradient_and_the_text_itself_does():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", 0.0, 0, memory=1)
    run(mixup, model, texts[0])
    _, logits = run(mixup, model, texts[1])
    logits.sum().backward()
    below, above = model.bert.encoder.layer[0], model.bert.encoder.layer[1]
    assert all(p.grad is None or not p.grad.any() for p in below.parameters())
    assert any(p.grad.any() for p in above.parameters())


def test_the_head_learns_from_stored_states_too():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "pooled", 0.0, memory=1)
    run(mixup, model, texts[0])
    _, logits = run(mixup, model, texts[1])
    logits.sum().backward()
    assert model.classifier.weight.grad.any()
    assert not any(p.grad is not None and p.grad.any() for p in model.bert.encoder.parameters())


def test_the_first_batch_has_nobody_to_be_mixed_with():
    model, text = toy_model("bert"), texts_one_by_one()[0]
    mixup = remembering(model, "hidden", layer=1)
    plan, logits = run(mixup, model, text)
    assert plan.outside is None and plan.lam.tolist() == [1.0] and plan.partner.tolist() == [0]
    torch.testing.assert_close(logits, clean(model, text), rtol=1e-4, atol=1e-5)
    assert mixup.targets(torch.tensor([2]), plan).tolist() == [[0.0, 0.0, 1.0]]


def test_labels_are_mixed_with_those_of_the_text_before():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "embeddings", 0.25, memory=1)
    run(mixup, model, texts[0], label=2)
    plan, logits = run(mixup, model, texts[1], label=0)
    target = torch.tensor([[0.25, 0.0, 0.75]])
    torch.testing.assert_close(mixup.targets(torch.tensor([0]), plan), target)
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(mixup.loss(logits, torch.tensor([0]), plan), expected)


def test_the_oldest_are_forgotten_and_every_layer_has_a_memory_of_its_own():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = Mixup(model, plain_config(site="hidden", layers=[0, 2], partner="previous_batch", memory=2))
    for text in texts * 5:
        run(mixup, model, text)
    places = mixup.planner.memory.places
    assert {place: len(rows) for place, rows in places.items()} == {"hidden 0": 2, "hidden 2": 2}
    batch = toy_batch()
    for _ in range(8):
        plan, _ = run(mixup, model, batch)
    rows = places[f"hidden {plan.layer}"]
    assert [row.inputs["input_ids"].tolist() for row in rows] == batch["input_ids"][2:].unsqueeze(1).tolist()


def test_a_batch_larger_than_the_memory_is_mixed_whole():
    model, batch = toy_model("bert"), toy_batch()
    mixup = remembering(model, "embeddings", 0.0, memory=1)
    run(mixup, model, texts_one_by_one()[2])
    _, logits = run(mixup, model, batch)
    expected = clean(model, texts_one_by_one()[2]).expand(4, -1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_text_without_a_mask_is_all_text():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", 1.0, 1, memory=1)
    bare = [{"input_ids": text["input_ids"]} for text in texts]
    run(mixup, model, bare[0])
    _, logits = run(mixup, model, bare[1])
    torch.testing.assert_close(logits, clean(model, texts[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", ["input", "embeddings", "hidden", "pooled"])
def test_images_are_mixed_with_those_before(site):
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, num_labels=3)).eval()
    images = torch.randn(2, 1, 3, 32, 32)
    mixup = remembering(model, site, 0.0, 1 if site == "hidden" else None, memory=1)
    for image in images:
        plan = mixup.draw({"pixel_values": image}, labels=torch.tensor([0]))
        with mixup.apply(plan, {"pixel_values": image}), torch.no_grad():
            logits = model(pixel_values=image).logits
    torch.testing.assert_close(logits, clean(model, {"pixel_values": images[0]}), rtol=1e-4, atol=1e-5)


def test_a_copy_of_the_memory_goes_on_alike():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixups = [remembering(model, "hidden", layer=1, memory=2) for _ in range(2)]
    for text in texts:
        run(mixups[0], model, text)
    mixups[1].load_state_dict(copy.deepcopy(mixups[0].state_dict()))
    (_, one), (_, other) = (run(mixup, model, texts[0]) for mixup in mixups)
    assert torch.equal(one, other) and not torch.equal(one, clean(model, texts[0]))


def test_a_wrapped_model_remembers_too():
    model = MixupModel(steady_bert(), PLAIN | {"partner": "previous_batch", "site": "hidden", "layers": [1]}).train()
    inputs = training_inputs(examples(1))
    losses = [model(**inputs).loss.item() for _ in range(2)]
    assert len(model.mixup.planner.memory.places["hidden 1"]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_gradients_are_those_without_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = steady_bert().train()
        mixup = remembering(model, "hidden", 0.4, 1, memory=1)
        if checkpointing:
            model.gradient_checkpointing_enable()
        for text in texts_one_by_one()[:2]:
            _, logits = run(mixup, model, text)
        logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_trainer_mixes_batches_of_one_with_accumulation(tmp_path):
    mixup = PLAIN | {"site": "hidden", "partner": "previous_batch", "memory": 3}
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 6}
    trainer = make_trainer(tmp_path, mixup=mixup, **options)
    trainer.train()
    assert all(len(rows) <= 3 for rows in trainer.mixup.planner.memory.places.values())
    lambdas = [entry["mixup_lambda"] for entry in trainer.state.log_history if "mixup_lambda" in entry]
    assert len(lambdas) == 6 and min(lambdas) < 0.9


@pytest.mark.parametrize("names", [("position_ids",), ("token_type_ids",), ("position_ids", "token_type_ids")])
@pytest.mark.parametrize("family", ["bert", "llama", "roberta"])
def test_inputs_of_the_users_own_are_exact(family, names):
    if family == "llama" and "token_type_ids" in names:
        names = ("position_ids",)
    model = toy_model(family)
    for site, layer in (("embeddings", None), ("hidden", 1), ("pooled", None)):
        for shared in (False, True):
            batches = []
            for lengths, seed in (((9, 6), 0), ((12, 7), 1)):
                batch = toy_batch(lengths, seed=seed)
                own = {
                    "position_ids": torch.arange(max(lengths)).expand(1 if shared else 2, -1),
                    "token_type_ids": torch.ones_like(batch["input_ids"]),
                }
                batches.append(
                    batch | {name: own[name] for name in names if name == "position_ids" or family == "bert"}
                )
            mixup = remembering(model, site, 0.0, layer, memory=1)
            with torch.no_grad():
                run(mixup, model, batches[0])
                _, logits = run(mixup, model, batches[1])
            expected = clean(model, batches[0])[1:].expand(2, -1)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_batches_with_other_inputs_are_refused():
    model, texts = toy_model("bert"), texts_one_by_one()
    typed = texts[1] | {"token_type_ids": torch.ones_like(texts[1]["input_ids"])}
    for first, second in ((texts[0], typed), (typed, texts[0])):
        mixup = remembering(model, "embeddings", memory=1)
        run(mixup, model, first)
        with pytest.raises(ValueError, match="token_type_ids: not in every batch"):
            run(mixup, model, second)


def test_a_batch_may_hold_more_than_the_model_takes():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", 0.0, 1, memory=1)
    for number, text in enumerate(texts):
        labels = torch.tensor([number % 3])
        batch = text | {"labels": labels} | ({"idx": labels} if number % 2 else {})
        plan = mixup.draw(batch, labels=labels)
        with mixup.apply(plan, batch), torch.no_grad():
            logits = model(**text).logits
    torch.testing.assert_close(logits, clean(model, texts[-2]), rtol=1e-4, atol=1e-5)


def test_embeddings_of_the_users_own_keep_no_graph():
    model, lookup = toy_model("bert"), torch.nn.Embedding(60, 32)
    mixup = remembering(model, "hidden", 0.5, 1, memory=1)
    for text in texts_one_by_one()[:2]:
        inputs = {"inputs_embeds": lookup(text["input_ids"])}
        plan = mixup.draw(inputs, labels=torch.tensor([0]))
        with mixup.apply(plan, inputs):
            logits = model(**inputs).logits
        mixup.loss(logits, torch.tensor([0]), plan).backward()
    assert lookup.weight.grad.any()


def test_plans_may_be_drawn_ahead():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "embeddings", memory=4)
    plans = [mixup.draw(text, labels=torch.tensor([0])) for text in texts]
    for plan, text in zip(plans, texts, strict=True):
        with mixup.apply(plan, text):
            model(**text)
    rows = mixup.planner.memory.places["embeddings"]
    assert [row.inputs["input_ids"].tolist() for row in rows] == [text["input_ids"].tolist() for text in texts]


def test_one_plan_is_for_one_forward_pass():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", layer=1, memory=1)
    run(mixup, model, texts[0])
    plan = mixup.draw(texts[1], labels=torch.tensor([0]))
    with pytest.raises(RuntimeError, match="applies to one forward pass"), mixup.apply(plan, texts[1]):
        model(**texts[1])
        model(**texts[1])


def test_a_model_that_remembers_can_be_pickled():
    model = MixupModel(steady_bert(), PLAIN | {"partner": "previous_batch", "site": "hidden", "layers": [1]}).train()
    inputs = training_inputs(examples(1))
    for _ in range(2):
        model(**inputs)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other(**inputs).loss, model(**inputs).loss)


def test_a_real_model_learns_real_texts_one_by_one(tmp_path):
    data = load_dataset("demo:rotten_tomatoes")["train"].shuffle(seed=0).select(range(64))
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo:minilm"))
    rows = data.map(lambda row: tokenizer(row["text"], truncation=True, max_length=48))
    model = AutoModelForSequenceClassification.from_pretrained(model_path("demo:minilm"), num_labels=2)
    options = {"max_steps": 40, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    trainer = MixupTrainer(
        model,
        arguments(tmp_path, learning_rate=2e-4, **options),
        train_dataset=rows,
        processing_class=tokenizer,
        mixup=PLAIN | {"site": "hidden", "partner": "previous_batch", "alpha": 0.4},
    )
    before = trainer.evaluate(rows)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] < 0.7 * before
    lambdas = [entry["mixup_lambda"] for entry in trainer.state.log_history if "mixup_lambda" in entry]
    assert len(lambdas) == 40 and sum(lambdas) / 40 < 0.7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": 4}, "memory=4 needs partner='previous_batch', got partner='random'"),
        ({"partner": "previous_batch", "memory": 0}, "memory=0: expected a whole number of 1 or more"),
        ({"partner": "previous"}, "Did you mean 'previous_batch'"),
        (
            {"partner": "previous_batch", "alpha": 2.0, "similarity": 1.0},
            "similarity=1.0: not with partner='previous_batch'",
        ),
        ({"partner": "all_ranks", "interpolation": "span", "site": "input"}, "interpolation='span': not with partner"),
        ({"partner": "previous_batch", "label_rule": "remix"}, "label_rule='remix': not with partner"),
    ],
)
def test_what_cannot_work_is_refused(fields, message):
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        plain_config(**fields)


@pytest.mark.parametrize("family", ["fnet", "funnel", "canine", "reformer", "layoutlmv3"])
def test_models_in_which_it_would_not_be_exact_are_refused(family):
    with pytest.raises(ValueError, match="partner='previous_batch'"):
        Mixup(any_toy_model(family), PLAIN | {"partner": "previous_batch"})


def test_labels_do_not_belong_in_the_forward_pass():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "embeddings", memory=1)
    run(mixup, model, texts[0])
    plan = mixup.draw(texts[1], labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="labels: leave them out"), mixup.apply(plan, texts[1]):
        model(**texts[1], labels=torch.tensor([0]))


def test_labels_are_needed_to_draw():
    with pytest.raises(ValueError, match="labels"):
        remembering(toy_model("bert"), "embeddings").draw(texts_one_by_one()[0])


def test_what_is_forgotten_is_freed():
    model, texts = toy_model("bert"), texts_one_by_one()
    mixup = remembering(model, "hidden", layer=1, memory=1)
    known = []
    for text in texts * 3:
        run(mixup, model, text)
        known.append(weakref.ref(mixup.planner.memory.places["hidden 1"][0].states[0]))
    gc.collect()
    # The last text is remembered, and the one before it is its partner in the last plan.
    assert sum(state() is not None for state in known) <= 2
