import copy
import inspect
import pickle
import warnings
from functools import partial

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, ViTConfig, ViTForImageClassification

from hf_mixup import MixupModel, MixupPlan, MixupTrainer
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import (
    CLASSES,
    NO_DROPOUT,
    a_plan,
    assert_same_step,
    clean_logits,
    collate,
    examples,
    first_step,
    make_trainer,
    one_hot,
    same_weights,
    steady_bert,
    swap_neighbours,
    training_inputs,
    two_term,
)
from tests.toy_text import save_toy_model
from tests.zoo import VOCAB, toy_batch, toy_model

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0, "self_pairs": False}


def mixing(model=None, plan=None, config=MIXED):
    """A MixupModel in training, under `plan` where one is given."""
    model = MixupModel(steady_bert() if model is None else model, config).train()
    if plan is not None:
        model.mixup.draw = lambda *args, **kwargs: plan
    return model


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


# ---- A loop of one's own ----


def test_in_training_the_outputs_carry_the_mixed_loss():
    inputs, plan = training_inputs(), a_plan(8)
    outputs = mixing(plan=plan)(**inputs)
    expected = two_term(F.cross_entropy, outputs.logits, inputs["labels"], plan)
    torch.testing.assert_close(outputs.loss, expected)
    assert not torch.allclose(outputs.logits, clean_logits(steady_bert(), inputs), atol=1e-2)
    assert outputs[0] is outputs.loss


def test_a_loop_of_ones_own_trains_the_model_that_was_given():
    plain = steady_bert()
    model = mixing(plain, config="fixed")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    inputs = training_inputs(examples(24))
    before = F.cross_entropy(clean_logits(plain, inputs), inputs["labels"])
    for _ in range(30):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert F.cross_entropy(clean_logits(plain, inputs), inputs["labels"]) < 0.5 * before


def test_in_evaluation_it_is_the_plain_model():
    plain, inputs = steady_bert(), training_inputs()
    expected = plain(**inputs)
    outputs = MixupModel(plain, MIXED).eval()(**inputs)
    assert torch.equal(outputs.logits, expected.logits) and torch.equal(outputs.loss, expected.loss)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", ["__call__", "forward"])
def test_training_in_evaluation_mode_is_warned_about_once(name, by_position):
    inputs = training_inputs()
    args = (inputs["input_ids"], inputs["attention_mask"], None, None, None, inputs["labels"]) if by_position else ()
    kwargs = {} if by_position else inputs
    model = mixing().eval()
    call = getattr(model, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            call(*args, **kwargs)
        call(inputs["input_ids"], inputs["attention_mask"])
    with pytest.warns(UserWarning, match=r"in eval mode, where it mixes nothing.* call model.train\(\) first") as seen:
        for _ in range(2):
            call(*args, **kwargs)
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train()
        call(*args, **kwargs)


RECIPES = {name: name for name in ("tmix", "word_mixup", "sent_mixup", "span_mix", "ssmix", "reg_mixup")}
RECIPES["previous_batch"] = PLAIN | {"partner": "previous_batch"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_forward_mixes_as_a_call_does(recipe):
    inputs, losses = training_inputs(), []
    for name in ("__call__", "forward"):
        model = MixupModel(steady_bert(), RECIPES[recipe], seed=1).train()
        losses.append([getattr(model, name)(**inputs).loss.item() for _ in range(3)])
        assert model.mixup.mixed == 3 and hooks_of(model) == []
    assert losses[0] == losses[1] and len({*losses[0]}) == 3


@pytest.mark.parametrize("site", ["input", "pooled"])
def test_forward_mixes_images(site):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    plain = ViTForImageClassification(ViTConfig(image_size=32, num_labels=3, initializer_range=0.2, **shape))
    inputs, plan = {"pixel_values": torch.randn(4, 3, 32, 32)}, MixupPlan(torch.arange(4).roll(1), torch.zeros(4), site)
    outputs = mixing(plain, plan, PLAIN | {"site": site}).forward(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(outputs.logits, clean_logits(plain, inputs).roll(1, 0))


def test_forward_keeps_its_signature_and_takes_arguments_by_position():
    plain, inputs, plan = steady_bert(), training_inputs(), a_plan(8)
    model = mixing(plain, plan)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    labels, input_ids, mask = (inputs[name] for name in ("labels", "input_ids", "attention_mask"))
    expected = model(**inputs).loss
    for args, kwargs in (((), inputs), ((input_ids, mask, None, None, None, labels), {})):
        assert torch.equal(model.forward(*args, **kwargs).loss, expected)
    assert torch.equal(model.eval().forward(**inputs).loss, plain.eval()(**inputs).loss)


@pytest.mark.parametrize("call", [lambda model: model, lambda model: model.forward], ids=["call", "forward"])
@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_one_mixed_pass_per_step_runs_the_users_hooks_once(call, clean_weight):
    model, ran = mixing(config=MIXED | {"clean_weight": clean_weight}), []
    call(model)(**training_inputs())
    model.register_forward_pre_hook(lambda *args: ran.append("before"))
    model.register_forward_hook(lambda *args: ran.append("after"))
    model.bert.embeddings.register_forward_hook(lambda *args: ran.append("embeddings"))
    call(model)(**training_inputs())
    passes = 1 if clean_weight == 0 else 2
    assert ran == ["before", "embeddings", "after"] * passes and model.mixup.mixed == 2


def test_a_forward_that_accelerate_put_on_the_model_still_mixes():
    plain, plan, inputs = steady_bert(), a_plan(8), training_inputs()
    expected = mixing(plan=plan)(**inputs)
    add_hook_to_module(plain, AlignDevicesHook(io_same_device=True, execution_device="cpu"))
    model = mixing(plain, plan)
    for outputs in (model(**inputs), model.forward(**inputs)):
        assert torch.equal(outputs.loss, expected.loss)


@pytest.mark.parametrize("how", ["compile", "torch.compile", "DDP"])
def test_it_mixes_the_same_compiled_and_under_ddp(how, tmp_path):
    inputs, losses = training_inputs(), []
    for is_wrapped in (False, True):
        model = MixupModel(steady_bert(), MIXED, seed=1).train()
        if is_wrapped and how == "compile":
            model.compile(backend="eager")
        called = {"torch.compile": partial(torch.compile, backend="eager"), "DDP": one_process}.get(
            how, lambda model: model
        )
        wrapped = called(model) if is_wrapped else model
        losses.append([wrapped(**inputs).loss.item() for _ in range(3)])
        assert model.mixup.mixed == 3
    torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len({*losses[0]}) == 3


def one_process(model):
    """A model under DDP, in a group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return torch.nn.parallel.DistributedDataParallel(model)


def test_inputs_may_be_given_by_position():
    inputs, plan = training_inputs(), a_plan(8)
    by_name = mixing(plan=plan)(**inputs)
    labels, input_ids, mask = (inputs[name] for name in ("labels", "input_ids", "attention_mask"))
    assert torch.equal(mixing(plan=plan)(input_ids, mask, labels=labels).loss, by_name.loss)
    assert torch.equal(mixing(plan=plan)(input_ids, mask, None, None, None, labels).loss, by_name.loss)
    assert mixing()(input_ids, attention_mask=mask, labels=labels).loss.isfinite()


def test_a_tuple_holds_loss_and_logits():
    inputs, plan = training_inputs(), a_plan(8)
    expected = mixing(plan=plan)(**inputs)
    loss, logits = mixing(plan=plan)(**inputs, return_dict=False)
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
    loss, logits = mixing(steady_bert(return_dict=False), plan)(**inputs)
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)


def test_the_batch_keeps_its_labels():
    inputs = training_inputs()
    mixing()(**inputs)
    assert set(inputs) == {"input_ids", "attention_mask", "labels"}


def test_training_without_labels_is_refused():
    inputs = training_inputs()
    del inputs["labels"]
    for call in (mixing(), mixing().forward):
        with pytest.raises(ValueError, match="labels: none in this training batch.*class Mine.MixupMixin, YourTrainer"):
            call(**inputs)
    assert mixing().eval()(**inputs).logits.shape == (8, CLASSES)


def test_labels_out_of_range_are_refused():
    with pytest.raises(ValueError, match="labels: found 1 to 3.*num_labels=3"):
        mixing()(**training_inputs(examples(8, lambda kind: kind + 1)))


def test_off_epoch_needs_the_epoch_and_obeys_it():
    model, inputs = mixing(config=MIXED | {"off_epoch": 2.0}), training_inputs()
    with pytest.raises(ValueError, match="off_epoch=2.0 needs the progress of training"):
        model(**inputs)
    clean = clean_logits(steady_bert(), inputs)
    for epoch, is_clean in ((1.9, False), (2.0, True)):
        model.mixup_epoch = epoch
        assert torch.allclose(model(**inputs).logits, clean, atol=1e-5) is is_clean


def test_processes_draw_plans_of_their_own():
    inputs = training_inputs()
    losses = [MixupModel(steady_bert(), MIXED, seed, rank).train()(**inputs).loss for seed, rank in ((3, 0), (3, 1))]
    again = MixupModel(steady_bert(), MIXED, 3, 0).train()(**inputs).loss
    assert losses[0] == again != losses[1]


# ---- Nothing is left on the model ----


def test_the_model_that_was_given_keeps_its_class_and_gets_no_hooks():
    plain = steady_bert()
    kind, keys, config = type(plain), list(plain.state_dict()), plain.config.to_dict()
    model = mixing(plain)
    model(**training_inputs()).loss.backward()
    with pytest.raises(IndexError):
        model(**training_inputs() | {"input_ids": torch.full((8, 9), VOCAB)})
    assert type(plain) is kind and hooks_of(plain) == [] and hooks_of(model) == []
    assert list(plain.state_dict()) == list(model.state_dict()) == keys
    assert plain.config.to_dict() == config and model.config is plain.config
    assert model(**training_inputs()).loss.isfinite()


def test_attributes_and_methods_are_the_models_own():
    plain = steady_bert()
    model = mixing(plain)
    assert isinstance(model, MixupModel) and isinstance(model, type(plain))
    assert model.num_labels == CLASSES and model.bert is plain.bert
    assert [*model.parameters()] == [*plain.parameters()]
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing and plain.bert.encoder.layer[0].gradient_checkpointing
    assert model.eval() is model and not model.training and not model.bert.training


@pytest.mark.parametrize("family", ["bert", "modernbert", "llama"])
def test_checkpointed_gradients_are_the_same(family):
    inputs = toy_batch() | {"labels": torch.tensor([0, 1, 2, 0])}
    gradients = []
    for checkpointing in (False, True):
        model = without_dropout(mixing(toy_model(family), a_plan(4), PLAIN | {"site": "embeddings"}))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_copy_is_a_model_of_its_own_with_the_same_plans():
    model, inputs = mixing(), training_inputs()
    model(**inputs)
    twin = copy.deepcopy(model)
    assert same_weights(model, twin) and isinstance(twin, MixupModel)
    assert torch.equal(model(**inputs).loss, twin(**inputs).loss)
    with torch.no_grad():
        twin.classifier.weight.zero_()
    assert not same_weights(model, twin)
    assert torch.allclose(twin(**inputs).logits, twin.classifier.bias.expand(8, -1))


def test_what_save_pretrained_writes_is_the_plain_model(tmp_path):
    plain = steady_bert()
    mixing(plain).save_pretrained(tmp_path / "mixing")
    plain.save_pretrained(tmp_path / "plain")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "mixing" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


# ---- A plain Trainer ----


def test_a_plain_trainer_finds_columns_and_labels(tmp_path):
    rows = Dataset.from_list([row | {"text": "some words", "weight": 0.5} for row in examples()])
    trainer = make_trainer(tmp_path, mixing(), Trainer, rows)
    seen = []
    trainer.data_collator = lambda rows: seen.extend(rows) or collate(rows)
    trainer.train()
    assert all(set(row) == {"input_ids", "attention_mask", "labels"} for row in seen) and seen
    assert trainer.label_names == ["labels"]


def test_a_plain_trainer_saves_the_plain_model(tmp_path):
    plain = steady_bert()
    trainer = make_trainer(tmp_path, mixing(plain), Trainer)
    trainer.train()
    trainer.save_model()
    loaded = type(plain).from_pretrained(tmp_path)
    assert same_weights(loaded, plain) and list(loaded.state_dict()) == list(plain.state_dict())
    assert not same_weights(loaded, steady_bert())
    assert loaded.config.architectures == ["BertForSequenceClassification"]
    assert loaded.config.problem_type is None


def test_a_plain_trainer_evaluates_the_plain_model(tmp_path):
    rows = examples(13)
    results = []
    for model in (steady_bert(), mixing()):
        trainer = make_trainer(tmp_path, model, Trainer, eval_dataset=rows)
        results.append((trainer.evaluate()["eval_loss"], trainer.predict(rows).predictions.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
@pytest.mark.parametrize("label", [int, one_hot], ids=["single-label", "multi-label"])
def test_a_plain_trainer_accumulates_the_mixed_loss_exactly(tmp_path, family, label):
    steps = []
    for trainer, size in ((MixupTrainer, 8), (Trainer, 8), (Trainer, 2)):
        # Without it DeBERTa has a loss of its own for several labels.
        problem_type = "multi_label_classification" if label is one_hot else None
        model = toy_model(family, **NO_DROPOUT, problem_type=problem_type)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        if trainer is Trainer:
            model = mixing(model)
            model.mixup.draw = swap_neighbours
        else:
            options |= {"mixup": MIXED, "draw": swap_neighbours}
        steps.append(first_step(tmp_path, model, trainer=trainer, rows=examples(label=label), **options))
    for step in steps[1:]:
        assert_same_step(step, steps[0])


def test_a_plain_trainer_mixes_under_bf16(tmp_path):
    losses = []
    for bf16 in (False, True):
        model = mixing()
        model.mixup.draw = swap_neighbours
        losses.append(first_step(tmp_path, model, trainer=Trainer, bf16=bf16)[0])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing_factor": 0.1}, {"compute_loss_func": lambda *args, **kwargs: torch.zeros(())}],
    ids=["label smoothing", "compute_loss_func"],
)
def test_losses_that_take_the_labels_away_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="compute_loss_func, .*use MixupTrainer"):
        make_trainer(tmp_path, mixing(), Trainer, **options).train()


# ---- Other models, other configs ----


def test_a_peft_model_inside_trains_its_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_dropout=0.0)
    plain = peft.get_peft_model(steady_bert(), lora)
    base = plain.get_base_model().bert.encoder.layer[0].attention.self.query.base_layer.weight.clone()
    rows = Dataset.from_list([row | {"text": "some words"} for row in examples()])
    trainer = make_trainer(tmp_path, mixing(plain), Trainer, rows)
    trainer.train()
    trainer.save_model()
    assert torch.equal(plain.get_base_model().bert.encoder.layer[0].attention.self.query.base_layer.weight, base)
    loaded = peft.PeftModel.from_pretrained(steady_bert(), tmp_path).eval()
    inputs = training_inputs()
    torch.testing.assert_close(clean_logits(loaded, inputs), clean_logits(plain.eval(), inputs))
    assert not torch.allclose(clean_logits(loaded, inputs), clean_logits(steady_bert(), inputs), atol=1e-4)


def test_a_peft_model_inside_has_the_mixed_loss():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], lora_dropout=0.0)
    inputs, plan = training_inputs(), a_plan(8)
    outputs = mixing(peft.get_peft_model(steady_bert(), lora), plan)(**inputs)
    torch.testing.assert_close(outputs.logits, mixing(plan=plan)(**inputs).logits)
    torch.testing.assert_close(outputs.loss, two_term(F.cross_entropy, outputs.logits, inputs["labels"], plan))


ADAPTED = {
    "bert": ["query", "value", "word_embeddings"],
    "deberta-v2": ["query_proj", "word_embeddings"],
    "llama": ["q_proj", "embed_tokens"],
    "gpt2": ["c_attn", "wte"],
}


def toy_inputs():
    return toy_batch() | {"labels": torch.tensor([0, 1, 2, 0])}


@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "pooled"])
@pytest.mark.parametrize("family", ADAPTED)
def test_inside_of_a_peft_model_it_is_exact(family, site):
    peft = pytest.importorskip("peft")
    inputs, partner = toy_inputs(), torch.tensor([2, 0, 3, 1])
    inside = MixupModel(toy_model(family), PLAIN | {"site": site})
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=ADAPTED[family], init_lora_weights=False)
    model = without_dropout(peft.get_peft_model(inside, lora))
    clean = clean_logits(model.eval(), toy_batch())
    model.train()
    for lam, expected in ((1.0, clean), (0.0, clean[partner])):
        plan = MixupPlan(partner=partner, lam=torch.full((4,), lam), site=site)
        inside.mixup.draw = lambda *args, plan=plan, **kwargs: plan
        outputs = model(**inputs)
        torch.testing.assert_close(outputs.logits, expected, rtol=1e-4, atol=1e-5)
        assert model(**inputs).loss.item() == outputs.loss.item()
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, inputs["labels"][partner]))
    assert inside.mixup.mixed == 4


def test_inside_of_a_peft_model_a_plain_trainer_trains_the_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    inside = mixing()
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    trainer = make_trainer(tmp_path, peft.get_peft_model(inside, lora), Trainer)
    trainer.train()
    assert inside.mixup.mixed == trainer.state.global_step > 0
    trainer.save_model()
    loaded = peft.PeftModel.from_pretrained(steady_bert(), tmp_path)
    torch.testing.assert_close(*(clean_logits(one.eval(), training_inputs()) for one in (loaded, trainer.model)))
    for wrap in (MixupModel, lambda model: make_trainer(tmp_path, model, mixup=MIXED)):
        with pytest.raises(ValueError, match="is or holds a MixupModel"):
            wrap(trainer.model)


# From transformers 5.24 on PEFT itself refuses prefixes.
BY_PEFT = "|does not support past key values"


def test_prompts_in_front_of_a_decoder_are_refused():
    peft = pytest.importorskip("peft")
    for tuning, message in (
        (peft.PrefixTuningConfig, "past_key_values: leave it out" + BY_PEFT),
        (peft.PromptTuningConfig, "inputs_embeds: .* needs input_ids"),
    ):
        adapter = tuning(task_type="SEQ_CLS", num_virtual_tokens=3)
        model = peft.get_peft_model(MixupModel(toy_model("llama"), MIXED), adapter).train()
        with pytest.raises(ValueError, match=message):
            model(**toy_inputs())


def test_a_training_that_passes_by_the_model_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    prefix = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    trainer = make_trainer(tmp_path, peft.get_peft_model(mixing(), prefix), Trainer)
    with pytest.raises(ValueError, match="first step of this training never called its MixupModel.*LoRA" + BY_PEFT):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_cross_encoder_that_computes_its_loss_outside_is_told_what_works(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    save_toy_model(tmp_path)
    encoder = sentence_transformers.CrossEncoder(str(tmp_path), num_labels=2, device="cpu")
    pairs = [("a fine film", "the plot was dull"), ("a poor plot", "warm")]
    expected = encoder.predict(pairs)
    encoder[0].model = MixupModel(encoder[0].model, MIXED)
    assert (encoder.predict(pairs) == expected).all()
    loss = sentence_transformers.cross_encoder.losses.CrossEntropyLoss(encoder.train())
    with pytest.raises(ValueError, match="loss is computed outside of the model.*sentence-transformers.*MixupMixin"):
        loss([list(texts) for texts in zip(*pairs, strict=True)], torch.tensor([0, 1]))


def test_configs_of_every_kind_are_taken(tmp_path):
    config = plain_config(site="pooled", alpha=0.3)
    config.save(tmp_path / "own.yaml")
    for spec in (config, config.to_dict(), str(tmp_path / "own.yaml")):
        assert MixupModel(steady_bert(), spec).mixup.config == config


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(ValueError, match="a MixupModel already"):
        MixupModel(mixing())
    for wrong, kind in ((object(), "object"), ("bert", "str"), (type(steady_bert()), "type")):
        with pytest.raises(ValueError, match=f"^model=.*: expected a model .torch.nn.Module., got .* type {kind}"):
            MixupModel(wrong)
    with pytest.raises(ValueError, match="Did you mean 'manifold'"):
        MixupModel(steady_bert(), "manifol")
    with pytest.raises(ValueError, match="layer 7 is out of range"):
        MixupModel(steady_bert(), PLAIN | {"site": "hidden", "layers": [7]})


def test_processes_draw_different_plans_before_their_group_exists(monkeypatch):
    batch, drawn = toy_batch(), []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        drawn.append(MixupModel(toy_model("bert")).mixup.draw(batch).lam)
    assert not torch.equal(*drawn)


def test_a_pickled_model_is_the_same_again():
    model, batch = MixupModel(toy_model("bert"), seed=3), toy_batch()
    other = pickle.loads(pickle.dumps(model))
    assert isinstance(other, MixupModel) and type(other) is type(model)
    expected, found = model.mixup.draw(batch), other.mixup.draw(batch)
    assert torch.equal(expected.partner, found.partner) and torch.equal(expected.lam, found.lam)
    assert torch.equal(other.eval()(**batch).logits, model.eval()(**batch).logits)
