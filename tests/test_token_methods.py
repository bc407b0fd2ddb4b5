"""Every recipe of labels per token against its formula, read here once more: loops over tokens."""

import pytest
import torch

from hf_mixup import Mixup, MixupCollator, MixupModel, MixupTrainer
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.config.recipes import resolve_config
from tests.loss.test_token_task import NAMES, TAGS, collate, named_tagger, sentences, slow_loss, tagger
from tests.methods import OF_TOKENS
from tests.plain_config import plain_config
from tests.toy_runs import arguments
from tests.zoo import cached_toy_model, toy_batch

SEEDS = range(4)


def drawn(recipe, seed):
    """A batch, its labels, a plan that mixes, and what goes into the first block and comes out of the model."""
    model, batch = named_tagger(), collate(sentences(8, seed))
    labels, mixup = batch.pop("labels"), Mixup(model, recipe, seed=seed)
    plan = mixup.draw(batch, labels=labels)
    while not plan.active:
        plan = mixup.draw(batch, labels=labels)
    seen = []
    handle = model.bert.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("input_ids")), with_kwargs=True
    )
    with torch.no_grad():
        clean = model(**batch).logits
        with mixup.apply(plan, batch):
            logits = model(**batch).logits
    handle.remove()
    return mixup, plan, batch, labels, clean, logits, seen[-1]


@pytest.mark.parametrize("seed", SEEDS)
def test_intra_lada_mixes_each_labeled_token_with_one_of_its_text(seed):
    mixup, plan, batch, labels, clean, logits, _ = drawn("intra_lada", seed)
    lam = float(plan.lam[0])
    assert torch.equal(plan.lam, torch.full((8,), lam)) and 0.8 < lam < 1
    total, weight = 0.0, 0.0
    for row in range(8):
        sources = []
        for position in range(labels.shape[1]):
            label, at = int(labels[row, position]), int(plan.source[row, position])
            if label < 0:
                assert at == -1
                torch.testing.assert_close(logits[row, position], clean[row, position])
                continue
            sources.append(at)
            other = int(labels[row, at])
            mixed = lam * clean[row, position] + (1 - lam) * clean[row, at]
            torch.testing.assert_close(logits[row, position], mixed)
            chances = mixed.log_softmax(-1)
            total = total - lam * chances[label] - (1 - lam) * chances[other]
            weight += 1
        assert sorted(sources) == (labels[row] >= 0).nonzero().flatten().tolist()
    torch.testing.assert_close(mixup.loss(logits, labels, plan), total / weight)


def test_intra_lada_is_mixed_about_as_little_as_its_code_does():
    """Beta(60, 1.5): the partner weighs 1.5 / 61.5 on average."""
    model, batch = named_tagger(), collate(sentences(4))
    labels, mixup = batch.pop("labels"), Mixup(model, "intra_lada")
    shares = [1 - float(mixup.draw(batch, labels=labels).lam[0]) for _ in range(600)]
    assert sum(shares) / len(shares) == pytest.approx(1.5 / 61.5, abs=0.003)


@pytest.mark.parametrize("seed", SEEDS)
def test_seq_mix_exchanges_a_whole_entity_and_its_labels(seed):
    mixup, plan, batch, labels, _, logits, entered = drawn("seq_mix", seed)
    ids, expected, exchanged = batch["input_ids"].clone(), labels.clone(), 0
    for row in range(8):
        taken = [(position, at) for position, at in enumerate(plan.source[row].tolist()) if at >= 0]
        for position, at in taken:
            ids[row, position] = batch["input_ids"][plan.partner[row], at]
            expected[row, position] = labels[plan.partner[row], at]
        if taken:
            exchanged += 1
            assert NAMES[int(labels[row, taken[0][0]])] != "O" and NAMES[int(expected[row, taken[0][0]])] != "O"
    assert exchanged and torch.equal(entered, ids)
    torch.testing.assert_close(mixup.loss(logits, labels, plan), slow_loss(logits, expected))
    # It is the pass over the texts that came of it.
    with torch.no_grad():
        torch.testing.assert_close(logits, mixup.model(input_ids=ids, attention_mask=batch["attention_mask"]).logits)


def draws_of(labels, names, ends=None, **changes):
    """The targets of many draws of two texts, as the names of the tags; `ends` is the id of the end of a text."""
    model = tagger(id2label=dict(enumerate(names)), num_labels=len(names), bos_token_id=None, eos_token_id=ends)
    labels = torch.tensor(labels)
    batch = {"input_ids": torch.arange(10, 10 + labels.numel()).reshape(labels.shape)}
    mixup, found = Mixup(model, {"recipe": "seq_mix", "prob": 1.0} | changes), set()
    for _ in range(60):
        plan = mixup.draw(batch, labels=labels)
        for row in mixup.targets(labels, plan):
            found.add(" ".join(names[int(one.argmax())] if one.any() else "-" for one in row))
    return found


BIO = ["O", "B-per", "I-per", "B-loc", "I-loc"]


def test_an_entity_at_the_end_of_a_text_stays_whole():
    """Of a tokenizer that ends texts by no token of its own; one of three tokens is not as long as one of two."""
    assert draws_of([[0, 0, 1, 2, 2], [0, 3, 4, 0, 0]], BIO) == {"O O B-per I-per I-per", "O B-loc I-loc O O"}
    assert "O O O B-loc I-loc" in draws_of([[0, 0, 0, 1, 2], [0, 3, 4, 0, 0]], BIO)


def test_what_may_end_a_text_is_left_out_of_its_last_entity():
    found = draws_of([[-100, 0, 1, -100], [-100, 3, 0, -100]], BIO)
    assert found == {"- O B-per -", "- B-loc O -", "- O B-loc -", "- B-per O -"}


@pytest.mark.parametrize("names", [["O", "B", "I"], ["O", "B_per", "I_per"], ["O", "S-per", "B-per", "I-per", "E-per"]])
def test_entities_are_read_from_the_usual_tags(names):
    single, several = (1, [2, 4]) if "S-per" in names else (1, [1, 2])
    found = draws_of([[0, *several, 0, 0, 0], [single, 0, 0, *several, 0]], names)
    # For an entity of two tokens there is one, for that of one token none.
    one, two = names[single], " ".join(names[tag] for tag in several)
    assert found == {f"O {two} O O O", f"{one} O O {two} O"}


def test_lambda_and_strength_say_whether_an_entity_is_exchanged():
    labels = [[0, 1, 0], [3, 0, 0]]
    assert draws_of(labels, BIO, lam=1.0) == draws_of(labels, BIO, strength=0.0) == {"O B-per O", "B-loc O O"}
    assert len(draws_of(labels, BIO, strength=0.5)) == 4


def test_seq_mix_needs_to_know_which_label_is_none():
    with pytest.raises(ValueError, match="interpolation='entity_span': needs 'O' among .*got LABEL_0"):
        Mixup(tagger(), "seq_mix")
    mixup, batch = Mixup(named_tagger(), "seq_mix"), collate(sentences(4))
    del batch["labels"]
    with pytest.raises(ValueError, match="give draw"):
        mixup.draw(batch)
    # Tokens of one text need no names.
    batch = collate(sentences(4))
    assert Mixup(tagger(), "intra_lada").draw(batch, labels=batch["labels"]).source is not None


@pytest.mark.parametrize("rule", ["own", "larger"])
def test_labels_of_exchanged_tokens_move_with_them(rule):
    with pytest.raises(ValueError, match=f"label_rule='{rule}': labels of tokens move with them; expected 'lambda'"):
        Mixup(named_tagger(), {"recipe": "seq_mix", "label_rule": rule})


def test_boxes_of_exchanged_tokens_are_refused():
    mixup, batch = Mixup(named_tagger(), {"recipe": "seq_mix", "prob": 1.0}), collate(sentences(4))
    plan = mixup.draw(batch, labels=batch.pop("labels"))
    with (
        pytest.raises(ValueError, match="bbox: the boxes of tokens would stay"),
        mixup.apply(plan, batch | {"bbox": 1}),
    ):
        pass


def test_inter_lada_mixes_near_texts_by_their_token_embeddings():
    model, batch = named_tagger(), collate(sentences(12))
    labels, mixup = batch.pop("labels"), Mixup(model, {"recipe": "inter_lada", "near_prob": 1.0, "neighbors": 2})
    # Padding has an embedding of its own here, which does not count.
    model.bert.embeddings.word_embeddings.weight.data[1] = 9.0
    looked_up, mask = model.bert.embeddings.word_embeddings.weight.detach()[batch["input_ids"]], batch["attention_mask"]
    means = torch.stack([looked_up[row, : int(mask[row].sum())].mean(0) for row in range(12)])
    found = torch.nn.functional.cosine_similarity(means.unsqueeze(0), means.unsqueeze(1), dim=-1)
    nearest = [set(row.argsort(descending=True)[1:3].tolist()) for row in found]
    assert not mixup.needs_labels
    for _ in range(8):
        plan = mixup.draw(batch, labels=labels)
        assert all(partner in nearest[row] for row, partner in enumerate(plan.partner.tolist()))
        assert plan.site == "hidden" and plan.layer in (1, 2)
        with mixup.apply(plan, batch), torch.no_grad():
            logits = model(**batch).logits
        torch.testing.assert_close(mixup.loss(logits, labels, plan), slow_loss(logits, labels, plan))


def test_near_texts_need_a_lookup_of_tokens():
    """Canine hashes characters, and names none."""
    model = any_toy_model("canine")
    mixup, batch = Mixup(model, plain_config(partner="near_text", site="pooled")), toy_batch()
    with pytest.raises(ValueError, match="partner='near_text': the token embeddings of Canine.* are not named"):
        mixup.draw(batch)


@pytest.mark.parametrize("recipe", [*OF_TOKENS, "inter_lada"])
def test_every_recipe_trains_in_every_way(tmp_path, recipe):
    batch = collate(sentences(8))
    model = MixupModel(named_tagger(), recipe).train()
    model(**batch).loss.backward()
    rows, args = sentences(16), arguments(tmp_path, max_steps=6, learning_rate=1e-2)
    trainer = MixupTrainer(named_tagger(), args, train_dataset=rows, data_collator=collate, mixup=recipe)
    trainer.train()
    assert trainer.mixup.mixed > 0 and len(trainer.state.log_history) == 7


@pytest.mark.parametrize("recipe", [*OF_TOKENS, "inter_lada"])
def test_a_resumed_stream_is_the_uninterrupted_one(recipe):
    model, batch = named_tagger(), collate(sentences(8))
    labels, plans = batch.pop("labels"), []
    first, second = Mixup(model, recipe, seed=1), Mixup(model, recipe, seed=2)
    for _ in range(3):
        first.draw(batch, labels=labels)
    second.load_state_dict(first.state_dict())
    plans = [[mixup.draw(batch, labels=labels) for _ in range(4)] for mixup in (first, second)]
    for one, other in zip(*plans, strict=True):
        assert torch.equal(one.lam, other.lam) and torch.equal(one.partner, other.partner)
        assert (one.source is None) == (other.source is None) and (
            one.source is None or (one.source == other.source).all()
        )


@pytest.mark.parametrize("changes", [{"partner": "same_text", "site": "pooled"}, {"interpolation": "entity_span"}])
def test_text_classifiers_are_refused(changes):
    name = next(iter(changes))
    changes = {"site": "input"} | changes
    with pytest.raises(ValueError, match=f"{name}=.*: BertForSequenceClassification gives one answer per text"):
        Mixup(cached_toy_model("bert"), plain_config(**changes))
    with pytest.raises(ValueError, match=f"{name}|site"):
        MixupCollator(collate, plain_config(**changes), TAGS)


def test_the_recipes_of_tokens_are_named():
    for name in OF_TOKENS:
        config = resolve_config(name)
        assert config.partner == "same_text" or config.interpolation == "entity_span"
