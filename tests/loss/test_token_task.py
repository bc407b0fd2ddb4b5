"""The loss of labels per token against a reading of its formula, token by token; what is refused."""

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PretrainedConfig,
)

from hf_mixup import Mixup, MixupModel, MixupPlan, MixupTrainer
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from hf_mixup.loss.token_task import TokenTask, types_and_beginnings
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import NO_DROPOUT, Gradients, arguments
from tests.zoo import COMMON, FAMILIES, VOCAB

TAGS, NAMES = 5, {0: "O", 1: "B-per", 2: "I-per", 3: "B-loc", 4: "I-loc"}
MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0}


def tagger(family="bert", **changes):
    """A toy token classifier in evaluation mode."""
    config = AutoConfig.for_model(family, **COMMON | {"num_labels": TAGS} | FAMILIES[family] | NO_DROPOUT | changes)
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model.eval()


def named_tagger():
    return tagger(id2label=NAMES, label2id={name: number for number, name in NAMES.items()})


def sentences(count=16, seed=0):
    """Sentences of 4 to 11 tokens; the first token, and some others, have no label."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        tokens = torch.randint(5, VOCAB, (4 + 5 * number % 8,), generator=generator)
        labels = (tokens % TAGS).where(tokens % 7 > 0, -100)
        labels[0], labels[1] = -100, int(tokens[1]) % TAGS
        rows.append({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    return rows


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name, value):
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = padded("input_ids", -1) >= 0
    return {"input_ids": padded("input_ids", 1), "attention_mask": mask.long(), "labels": padded("labels", -100)}


def slow_loss(logits, labels, plan=None, smoothing=0.0, class_weights=None):
    """sum_t [lam a_i CE(z_t, y_i) + (1 - lam) a_j CE(z_t, y_j)] / sum_t [lam a_i + (1 - lam) a_j], token by token."""
    total, weight = torch.zeros(()), 0.0
    for row in range(len(labels)):
        pairs = [(row, 1.0)]
        if plan is not None:
            lam = plan.lam if plan.label_lam is None else plan.label_lam
            pairs = [(row, float(lam[row])), (int(plan.partner[row]), 1 - float(lam[row]))]
        for own, share in pairs:
            for position, label in enumerate(labels[own].tolist()):
                if label == -100:
                    continue
                chances = logits[row, position].log_softmax(-1)
                for kind in range(TAGS):
                    target = (1 - smoothing) * (kind == label) + smoothing / TAGS
                    factor = 1.0 if class_weights is None else class_weights[kind]
                    total = total - share * target * factor * chances[kind]
                weight += share
    return total / weight


def a_plan(size, label_lam=None):
    generator = torch.Generator().manual_seed(3)
    # Not a permutation: some are partners twice, others never.
    partner = torch.randint(0, size, (size,), generator=generator)
    return MixupPlan(partner, torch.rand(size, generator=generator), "embeddings", label_lam=label_lam)


CASES = {
    "clean": {},
    "mixed": {"plan": a_plan(4)},
    "own lambda of the label": {"plan": a_plan(4, torch.tensor([1.0, 0.2, 0.0, 0.7]))},
    "smoothed": {"plan": a_plan(4), "smoothing": 0.2},
    "weighted": {"plan": a_plan(4), "class_weights": [1.0, 2.0, 0.5, 3.0, 1.0]},
    "all": {"plan": a_plan(4), "smoothing": 0.1, "class_weights": [1.0, 2.0, 0.5, 3.0, 1.0]},
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradients_are_those_of_the_formula(case):
    given = CASES[case]
    plan, smoothing, weights = (given.get(name) for name in ("plan", "smoothing", "class_weights"))
    labels = collate(sentences(4))["labels"]
    logits = torch.randn(*labels.shape, TAGS, generator=torch.Generator().manual_seed(1), requires_grad=True)
    task = TokenTask(PretrainedConfig(num_labels=TAGS), plain_config(class_weights=weights))
    losses = task.losses(logits, task.targets(labels, plan), "token_classification", smoothing or 0.0)
    assert losses.shape == (4,)
    expected = slow_loss(logits, labels, plan, smoothing or 0.0, weights)
    torch.testing.assert_close(losses.mean(), expected)
    found, slow = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (losses.mean(), expected))
    torch.testing.assert_close(found, slow)


@pytest.mark.parametrize("end", [0.0, 1.0])
@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden", "pooled"])
def test_at_both_ends_the_loss_is_the_clean_one(site, end):
    """Of the examples, or of their partners: each of another length."""
    model, batch = tagger(), collate(sentences(8))
    labels, partner = batch.pop("labels"), torch.arange(8).roll(3)
    mixup = Mixup(model, plain_config(site=site))
    with torch.no_grad():
        clean = mixup.loss(model(**batch).logits, labels)
        plan = MixupPlan(partner, torch.full((8,), end), site, 1 if site == "hidden" else None)
        with mixup.apply(plan, batch):
            logits = model(**batch).logits
        mixed = mixup.loss(logits, labels, plan)
    torch.testing.assert_close(mixed, clean)
    torch.testing.assert_close(clean, model(**batch, labels=labels).loss)


def test_a_batch_without_labels_gives_0():
    task = TokenTask(PretrainedConfig(num_labels=TAGS), plain_config())
    logits = torch.randn(2, 3, TAGS, requires_grad=True)
    loss = task.losses(logits, task.targets(torch.full((2, 3), -100)), "token_classification").mean()
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("names", [None, ("O", "B-x"), ("I-x", "O")])
def test_the_surplus_is_that_of_tokens_and_of_the_number_of_entities(names):
    names = {} if names is None else {"id2label": dict(enumerate(names))}
    task = TokenTask(PretrainedConfig(num_labels=2, **names), plain_config())
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [9.0, 0.0]], [[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3, [[1.0, 1.0]] * 3])
    labels = torch.tensor([[0, 0, -100], [0, 0, -100], [0, 0, -100], [-100, -100, -100]])
    outside = [number for number, name in task.about.id2label.items() if name == "O"]
    found = task.surplus(logits, labels)
    for row, of_row in enumerate(found[:3]):
        chances = logits[row, :2].softmax(-1)
        sure = chances.max(-1).values - (chances.argmax(-1) == 0).float()
        # Both tokens have label 0.
        entities = sum(chances[:, label].mean() - float(label == 0) for label in (0, 1) if label not in outside)
        torch.testing.assert_close(of_row, torch.stack([sure.mean(), entities if outside else sure.mean()]))
    assert found[3].isnan().all()


def test_what_begins_an_entity_is_known_by_the_names():
    names = ["O", "S-x", "U-x", "B-x", "I-x", "E-x", "noun"]
    assert types_and_beginnings(names) == ((0, 2, 2, 2, 2, 2, 1), (0, 1, 1, 1, 0, 0, 0))


# ---- The ways in ----


def trained(folder, rows, mixup=None, model=None, **options):
    seen = Gradients()
    own = {name: options.pop(name) for name in ("class_weights", "compute_loss_func") if name in options}
    given = {"callbacks": [seen], "data_collator": collate, "mixup": mixup, **own}
    trainer = MixupTrainer(
        model=model or tagger(),
        args=arguments(folder, **{"max_grad_norm": 0.0, "max_steps": 1} | options),
        train_dataset=rows,
        **given,
    )
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(
        torch.utils.data.DataLoader(rows, trainer.args.per_device_train_batch_size, collate_fn=collate)
    )
    return trainer, seen


def step_of(folder, rows, **options):
    trainer, seen = trained(folder, rows, **options)
    trainer.train()
    return trainer.state.log_history[0]["loss"], seen.first


@pytest.mark.parametrize("mixup", [None, MIXED | {"prob": 0.0}], ids=["off", "never mixed"])
def test_accumulated_batches_are_one_step_of_their_tokens(tmp_path, mixup):
    """8 x 1 and 4 x 2 of sentences of different lengths: each labeled token counts as much."""
    rows = sentences(8)
    steps = [
        step_of(tmp_path, rows, mixup=mixup, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        for size in (8, 4, 1)
    ]
    for loss, gradients in steps[1:]:
        assert loss == pytest.approx(steps[0][0], abs=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, steps[0][1][name], rtol=1e-5, atol=1e-5)


def test_a_mixed_step_is_that_of_the_formula(tmp_path):
    rows = sentences(8)
    trainer, seen = trained(tmp_path, rows, MIXED, label_smoothing_factor=0.1, class_weights=[1.0, 2.0, 1.0, 1.0, 4.0])
    trainer.mixup.draw = lambda batch, *args, **kwargs: a_plan(8)
    trainer.train()
    model, batch = tagger(), collate(rows)
    labels, plan = batch.pop("labels"), a_plan(8)
    with Mixup(model, MIXED).apply(plan, batch):
        logits = model(**batch).logits
    loss = slow_loss(logits, labels, plan, 0.1, [1.0, 2.0, 1.0, 1.0, 4.0])
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(seen.first[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_loss_of_ones_own_is_evaluated_for_both_label_sets(tmp_path):
    def own(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    rows = sentences(8)
    given = {"mixup": MIXED | {"mode": "batch"}, "per_device_train_batch_size": 8}
    assert step_of(tmp_path, rows, **given)[0] == pytest.approx(
        step_of(tmp_path, rows, **given, compute_loss_func=own)[0], rel=1e-4
    )


def test_a_mixup_model_has_the_mixed_loss():
    model, batch = tagger(), collate(sentences(8))
    mixing = MixupModel(model, MIXED).train()
    mixing.mixup.draw = lambda *args, **kwargs: a_plan(8)
    outputs = mixing(**batch)
    torch.testing.assert_close(outputs.loss, slow_loss(outputs.logits, batch["labels"], a_plan(8)))


def test_the_default_mixes_at_random_and_follows_held_out_tokens(tmp_path):
    given = {"max_steps": 40, "eval_strategy": "steps", "eval_steps": 8, "learning_rate": 1e-2, "logging_steps": 8}
    rows, others = sentences(16), sentences(40, 1)
    trainer = MixupTrainer(
        tagger(), arguments(tmp_path, **given), train_dataset=rows, eval_dataset=others, data_collator=collate
    )
    trainer.train()
    assert trainer.mixup.config.partner == "random"
    checks = trainer._auto_strength.checks
    assert [check.rows for check in checks] == [40] * 4 and max(check.strength for check in checks) > 0


@pytest.mark.parametrize("mixup", [None, MIXED, "default"], ids=["off", "mixed", "default"])
def test_a_text_without_labels_teaches_nothing(tmp_path, mixup):
    """Not nan either: alone in its batch, the first and a later one."""
    rows = sentences(8)
    for number in (0, 3):
        rows[number]["labels"] = [-100] * len(rows[number]["labels"])
    each = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    loss, gradients = step_of(tmp_path, rows, mixup=mixup, **each)
    known, expected = step_of(tmp_path, rows, per_device_train_batch_size=8)
    assert loss == pytest.approx(known, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_the_problem_type_of_a_head_for_texts_says_nothing(tmp_path, kind):
    rows = sentences(8)
    for mixup in (None, MIXED | {"lam": 1.0}):
        found = step_of(tmp_path, rows, mixup=mixup, model=tagger(problem_type=kind))
        assert found[0] == pytest.approx(step_of(tmp_path, rows, mixup=mixup)[0], rel=1e-5)


def test_a_model_waits_for_labels_to_look_at_its_loss():
    model, batch = MixupModel(tagger(), MIXED).train(), collate(sentences(8))
    model(**batch | {"labels": torch.full_like(batch["labels"], -100)}).loss.backward()
    assert model(**batch).loss.item() > 0


# ---- What is refused ----


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"partner": "same_class"}, "partner='same_class'"),
        ({"partner": "previous_batch"}, "partner='previous_batch'"),
        ({"site": "input", "interpolation": "salient_span"}, "interpolation='salient_span'"),
        ({"label_rule": "remix"}, "label_rule='remix'"),
    ],
)
def test_what_needs_one_label_per_text_is_refused(changes, name):
    with pytest.raises(ValueError, match=f"{name}: not with labels per token; expected "):
        Mixup(tagger(), plain_config(**changes))


def test_labels_of_another_kind_are_refused(tmp_path):
    mixup, labels = Mixup(tagger(), plain_config()), collate(sentences(4))["labels"]
    with pytest.raises(
        ValueError, match=r"labels: torch.int64 of shape \(4,\); a token classifier takes class indices"
    ):
        mixup.targets(labels[:, 1])
    with pytest.raises(ValueError, match=r"num_labels=5, so labels must lie in 0 to 4; row 3 is the first"):
        mixup.targets(labels.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(9)))
    rows = sentences(8)
    rows[5]["labels"][1] = 7
    trainer = MixupTrainer(tagger(), arguments(tmp_path), train_dataset=rows, data_collator=collate, mixup=MIXED)
    with pytest.raises(ValueError, match="num_labels=5, so labels must lie in 0 to 4; row"):
        trainer.train()


def test_rows_without_any_label_are_refused(tmp_path):
    rows = [row | {"labels": [-100] * len(row["labels"])} for row in sentences(8)]
    collator = DataCollatorForTokenClassification(None)
    args = arguments(tmp_path)
    trainer = MixupTrainer(tagger(), args, train_dataset=Dataset.from_list(rows), data_collator=collator, mixup=MIXED)
    with pytest.raises(ValueError, match="-100 in every row"):
        trainer.train()


def test_teachers_and_unlabeled_rows_are_refused(tmp_path):
    given = {"args": arguments(tmp_path), "train_dataset": sentences(8), "data_collator": collate}
    with pytest.raises(ValueError, match="teacher: not with labels per token"):
        MixupTrainer(tagger(), **given, teacher=tagger())
    with pytest.raises(ValueError, match="unlabeled_dataset: not with labels per token"):
        MixupTrainer(tagger(), **given, mixup=MIXED | {"unlabeled": UnlabeledConfig()}, unlabeled_dataset=sentences(8))


class ChainedForTokenClassification(type(tagger())):
    """A head whose loss is not that of each token alone, as a CRF's is not: neighbors of one class cost extra."""

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        outputs = super().forward(input_ids, attention_mask, labels=labels)
        if labels is not None:
            chances = outputs.logits.softmax(-1)
            outputs.loss = outputs.loss + (chances[:, 1:] * chances[:, :-1]).sum(-1).mean()
        return outputs


@pytest.mark.parametrize("kind", [MixupTrainer, MixupModel])
def test_a_head_with_a_loss_of_its_own_is_refused_at_the_first_batch(tmp_path, kind):
    model = ChainedForTokenClassification(tagger().config).train()
    message = "loss that ChainedForToken.* computes by itself.* is not the token_classification loss"
    with pytest.raises(ValueError, match=message):
        if kind is MixupModel:
            MixupModel(model, MIXED)(**collate(sentences(8)))
        else:
            trained(tmp_path, sentences(8), MIXED, model)[0].train()
    assert model.training and not any(parameter.grad is not None for parameter in model.parameters())
