"""What hf_mixup relies on in transformers, PyTorch and PEFT without being promised it: one test per fact.

A failure here says what has moved in a new version, and where to mend it.
"""

import inspect
import logging

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    PretrainedConfig,
    T5ForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperForAudioClassification,
)
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.models.bert.modeling_bert import BertForSequenceClassification, BertLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.xlnet.modeling_xlnet import XLNetLayer
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.trainer_pt_utils import LabelSmoother

from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.forward.anatomy import host, kernels
from hf_mixup.forward.anatomy.block_mask import as_bias
from hf_mixup.forward.anatomy.inputs import INPUTS, bind, first_tensor, root_of
from hf_mixup.forward.anatomy.masks import BIAS_BELOW
from hf_mixup.forward.anatomy.quirks import QUIRKS
from hf_mixup.training import trainer_seams
from tests.forward.anatomy.test_images_and_sounds import MODELS as SOUNDS_OR_IMAGES
from tests.forward.anatomy.test_images_and_sounds import toy as toy_sounds
from tests.hosts import BEFORE_5_15
from tests.toy_runs import make_trainer
from tests.zoo import toy_model

HOST, KERNELS = "hf_mixup/forward/anatomy/host.py", "hf_mixup/forward/anatomy/kernels.py"


def moved(fact, name, where=HOST):
    """The message of a test that fails."""
    return f"No longer true: {fact}. Mend {name} in {where}."


# ---- transformers: the model and its config ----


@pytest.mark.parametrize("kernel", host.KERNELS_WITH_BIAS)
def test_the_config_names_the_attention_kernel(kernel):
    model = toy_model("bert", attention=kernel)
    assert host.kernels_of(model) == {getattr(model.config, host.ATTENTION_KERNEL, None)} == {kernel}, moved(
        "the config's field that names the attention kernel", "ATTENTION_KERNEL"
    )


FLASH_KERNELS = [f"flash_attention_{version}" for version in (2, 3, 4)]


def test_every_flash_kernel_is_one_function_in_the_table():
    with_weights = kernels.flash_attention_with_weights
    for name in FLASH_KERNELS:
        found = host.ALL_ATTENTION_FUNCTIONS[name]
        assert found in (host.flash_attention_forward, with_weights), moved(
            f"transformers calls {name} by flash_attention_forward", "is_flash", KERNELS
        )
    own = list(inspect.signature(host.flash_attention_forward).parameters)
    assert own[:7] == list(inspect.signature(with_weights).parameters)[:7], moved(
        "flash_attention_forward's first arguments", "flash_attention_with_weights", KERNELS
    )
    assert "softcap" in own, moved("flash_attention_forward takes the cap as softcap", "_room", KERNELS)


def test_a_flash_kernel_is_given_the_mask_of_the_keys_or_none():
    config = toy_model("bert").config
    config._attn_implementation = FLASH_KERNELS[0]
    states = torch.zeros(2, 3, 4)
    for mask in ([[1, 1, 1], [1, 1, 0]], [[1, 1, 1], [1, 1, 1]]):
        mask = torch.tensor(mask)
        given = create_bidirectional_mask(config, states, mask)
        is_as_expected = given is None if mask.all() else torch.equal(given, mask.bool())
        assert is_as_expected, moved("the mask of flash kernels", "flash_attention_with_weights", KERNELS)


def test_the_mask_of_flex_attention_is_a_function_and_has_sizes():
    mask = create_block_mask(lambda batch, head, query, key: key <= query, 2, None, 3, 3, "cpu")
    expected = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf)
    assert torch.equal(as_bias(mask), expected.expand(2, 1, 3, 3)), moved(
        "a BlockMask has mask_mod, shape and kv_num_blocks", "as_bias", "hf_mixup/forward/anatomy/block_mask.py"
    )
    parameters = inspect.signature(flex_attention_forward).parameters
    assert list(parameters)[4] == "attention_mask", moved(
        "flex attention takes a bias as its mask", "as_bias", "hf_mixup/forward/anatomy/block_mask.py"
    )


def test_the_model_names_its_backbone():
    model = toy_model("bert")
    assert host.backbone_of(model) is model.bert, moved("base_model_prefix names the backbone", "backbone_of")


def test_a_model_around_one_of_transformers_has_its_backbone_and_main_input():
    inner = toy_model("bert")
    around = nn.ModuleList([nn.Linear(2, 2), inner])
    assert host.backbone_of(around) is inner.bert and host.main_input(around) == "input_ids"
    assert host.backbone_of(nn.ModuleList([inner, toy_model("t5")])) is not inner.bert


def test_the_model_names_its_main_input():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 4, "patch_size": 2}
    assert host.main_input(ViTForImageClassification(ViTConfig(**sizes))) == "pixel_values", moved(
        "main_input_name names the input that holds the examples", "main_input"
    )


def test_the_model_declares_its_blocks():
    assert BertLayer in host.recorded_blocks(toy_model("bert")), moved(
        "_can_record_outputs['hidden_states'] names the classes of blocks", "recorded_blocks"
    )


def test_the_config_knows_the_part_for_texts():
    config = PretrainedConfig()
    assert config.get_text_config() is config, moved(
        "get_text_config() of a config for texts is that config", "text_config", "hf_mixup/forward/anatomy/inputs.py"
    )


def test_fsdp_can_be_asked_for():
    assert host.is_fsdp_enabled() is False, moved("transformers.integrations.is_fsdp_enabled", "is_fsdp_enabled")


@pytest.mark.parametrize("is_mended", [False, True])
def test_hooks_of_a_checkpointed_block_run_once(is_mended):
    model, seen = toy_model("bert").train(), []
    model.gradient_checkpointing_enable()
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda *args: seen.append(args))
    handles = [*host.hooks_outside(model)] if is_mended and host.CHECKPOINTS_HOOKS else []
    logits = model(input_ids=torch.tensor([[5, 6, 2]])).logits
    for handle in handles:
        handle.remove()
    logits.sum().backward()
    assert len(seen) == (2 if host.CHECKPOINTS_HOOKS and not is_mended else 1), moved(
        "whether hooks run again when a block is recomputed", "CHECKPOINTS_HOOKS, HooksOutside"
    )


def test_the_position_bias_of_t5_holds_the_mask_in_old_versions():
    seen, batch = [], {"input_ids": torch.tensor([[5, 2, 1]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    model = toy_model("t5")
    names = set(inspect.signature(model.transformer.encoder.block[1].forward).parameters)
    assert set(host.MASKED_BIASES) <= names, moved("blocks of T5 take position biases", "MASKED_BIASES")
    model.transformer.encoder.block[1].register_forward_pre_hook(
        lambda block, args, kwargs: seen.append(bind([*inspect.signature(block.forward).parameters], args, kwargs)),
        with_kwargs=True,
    )
    model(**batch)
    is_masked = bool(seen[0]["position_bias"].min() < BIAS_BELOW)
    assert is_masked == BEFORE_5_15, moved("T5 adds the mask to the bias before 5.15", "MASKED_BIASES")


def test_layerdrop_is_read_from_modules_and_config():
    bart = toy_model("bart", encoder_layerdrop=0.25)
    assert host.LAYERDROP in vars(bart.model.encoder), moved("encoders hold their rate of layerdrop", "LAYERDROP")
    assert all(hasattr(bart.config, name) for name in host.COPIED_LAYERDROP), moved(
        "configs hold the rates that are copied", "COPIED_LAYERDROP"
    )
    assert hasattr(Wav2Vec2Config(), host.LAYERDROP), moved("configs hold the rate that is read", "LAYERDROP")


# ---- transformers: what models and blocks are given and return ----


def test_models_take_inputs_of_the_known_names():
    models = (BertForSequenceClassification, ViTForImageClassification, Wav2Vec2ForSequenceClassification)
    models += (WhisperForAudioClassification, T5ForSequenceClassification)
    taken = {name for model in models for name in inspect.signature(model.forward).parameters}
    # Of videos there is no model to classify texts here, and a classifier takes no cache.
    known = set(INPUTS) - {"pixel_values_videos", "past_key_values"}
    assert known <= taken, moved(f"models take {known - taken}", "INPUTS", "hf_mixup/forward/anatomy/inputs.py")


@pytest.mark.parametrize(("block", "name"), [(LlamaDecoderLayer, "position_embeddings"), (XLNetLayer, "seg_mat")])
def test_blocks_take_what_mixes_on_a_line(block, name):
    names = set(inspect.signature(block.forward).parameters)
    assert name in host.LINEAR_ARGUMENTS and name in names, moved(f"{block.__name__} takes {name}", "LINEAR_ARGUMENTS")


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_caches_are_told_from_other_objects(family):
    kinds = [DynamicCache, EncoderDecoderCache]
    assert all(issubclass(kind, host.Cache) for kind in kinds), moved("caches are of class Cache", "Cache")
    seen = []
    model = toy_model(family)
    block = (model.model.decoder if family == "bart" else model.model).layers[0]
    block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model(input_ids=torch.tensor([[5, 6, 2]]), use_cache=True)
    objects = [value for value in seen[0].values() if not isinstance(value, (torch.Tensor, tuple, bool, type(None)))]
    assert all(isinstance(value, host.Cache) for value in objects), moved("blocks are given no other objects", "Cache")


def test_outputs_are_dicts_with_the_states_first():
    output = SequenceClassifierOutput(logits=torch.ones(1))
    assert isinstance(output, dict) and first_tensor(output) is output["logits"], moved(
        "outputs are dicts of what is not None", "first_tensor", "hf_mixup/forward/anatomy/inputs.py"
    )


@pytest.mark.parametrize("model_type", [name for name, quirk in QUIRKS.items() if quirk.blocks])
def test_quirks_name_modules(model_type):
    model = toy_sounds(model_type) if model_type in SOUNDS_OR_IMAGES else any_toy_model(model_type)
    quirk, paths = QUIRKS[model_type], dict(host.backbone_of(model).named_modules())
    named = {*quirk.blocks, *([quirk.embedding_module] if quirk.embedding_module else [])}
    assert named <= set(paths), moved(
        f"{model_type} has the modules {named}", f"QUIRKS[{model_type!r}]", "hf_mixup/forward/anatomy/quirks.py"
    )


def test_token_classifiers_are_told_by_the_names_of_their_classes():
    for mapping, label_tokens in (
        (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, True),
        (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, False),
    ):
        classes = [type(name, (nn.Module,), {}) for name in mapping.values()]
        wrong = [kind.__name__ for kind in classes if host.labels_tokens(kind()) != label_tokens]
        assert not wrong, moved(f"classes are named ForTokenClassification, not {wrong}", "labels_tokens")


# ---- PEFT ----


def test_adapters_that_learn_a_prompt_are_told():
    prompt = get_peft_model(toy_model("bert"), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    lora = get_peft_model(toy_model("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    assert host.learned_prompt(prompt) == "PROMPT_TUNING", moved(
        "active_peft_config.is_prompt_learning and .peft_type", "learned_prompt"
    )
    assert host.learned_prompt(lora) is None and host.learned_prompt(toy_model("bert")) is None


def test_adapters_around_a_module_are_told():
    model = get_peft_model(toy_model("bert"), LoraConfig(target_modules=["word_embeddings"]))
    around = model.base_model.model.bert.embeddings.word_embeddings
    assert host.is_adapter(around) and not host.is_adapter(around.base_layer), moved(
        "layers of adapters are classes of peft", "is_adapter"
    )


# ---- PyTorch ----


def test_the_compiler_can_be_told_to_look_for_hooks():
    config = torch._dynamo.config
    assert isinstance(getattr(config, host.SKIPS_HOOKS, None), bool), moved(
        "the compiler's config says whether it looks for hooks", "SKIPS_HOOKS"
    )
    assert getattr(config, host.GRAPHS_KEPT, 0) >= host.DEFAULT_GRAPHS_KEPT, moved(
        "the compiler's config says how many graphs of a function are kept", "GRAPHS_KEPT, DEFAULT_GRAPHS_KEPT"
    )


def test_the_model_is_found_inside_of_wrappers():
    model = toy_model("bert")
    adapted = get_peft_model(toy_model("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model)), model):
        assert root_of(wrapped) is model, moved("wrappers hold the model as a module", "is_wrapper")
    assert root_of(adapted) is adapted.base_model.model, moved("adapters stand in the package peft", "is_adapter")
    for kind in (nn.parallel.DistributedDataParallel, FullyShardedDataParallel):
        assert kind.__name__ in host.WRAPPERS, moved(f"the class {kind.__name__}", "WRAPPERS")


def test_models_of_timm_say_the_size_of_their_images():
    timm = pytest.importorskip("timm", reason="timm, and torchvision built for this torch, are not installed")
    sizes = {"img_size": 64, "depth": 1, "embed_dim": 48}
    for architecture, changes, shape in (
        ("resnet10t", {}, (3, 176, 176)),
        ("vit_tiny_patch16_224", sizes, (3, 64, 64)),
    ):
        found = host.image_shape(timm.create_model(architecture, **changes))
        assert found == shape, moved(
            "models of timm hold pretrained_cfg, and the size they are made for", "image_shape"
        )


def test_an_error_names_the_reentrant_checkpoint():
    states = torch.ones(2, requires_grad=True)
    result = checkpoint(lambda value: value * 2, states, use_reentrant=True).sum()
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(result, states)
    assert host.is_reentrant_checkpoint(caught.value), moved(
        "the error of a reentrant checkpoint names use_reentrant", "is_reentrant_checkpoint"
    )


def test_parameters_can_be_exchanged():
    layer, other = nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))
    host.own_parameters(layer)["weight"] = other
    assert layer.weight is other and not layer(torch.ones(2)).sub(layer.bias).any(), moved(
        "a module reads its parameters from _parameters", "own_parameters"
    )


def test_children_are_seen_as_they_are_now():
    outer, other = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    children = host.own_modules(outer)
    outer[0] = other
    assert children == {"0": other}, moved("a module keeps its children in _modules", "own_modules")


def test_parameters_that_are_not_all_here_are_told():
    here, elsewhere = nn.Linear(2, 2).weight, nn.Linear(2, 2, device="meta").weight
    assert host.is_whole(here) and not host.is_whole(elsewhere), moved("parameters on the meta device", "is_whole")


def test_a_call_of_a_module_can_be_intercepted_with_its_hooks_inside():
    module, ran = nn.Linear(2, 2), []
    module.register_forward_hook(lambda *args: ran.append("hook"))
    with host.intercepted(module, lambda call, args, kwargs: (ran.append("call"), call(*args, **kwargs))[1]):
        module(torch.ones(1, 2))
    module(torch.ones(1, 2))
    assert ran == ["call", "hook", "hook"], moved("nn.Module.__call__ runs _compiled_call_impl", "intercepted")
    assert "_compiled_call_impl" not in vars(module)


# ---- Trainer ----

SEAMS, BASELINE = "hf_mixup/training/trainer_seams.py", "hf_mixup/training/baseline_trainer.py"
COMPUTE_LOSS = ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]


@pytest.mark.parametrize(
    ("name", "parameters", "caller", "where"),
    [
        ("_save", ["self", "output_dir", "state_dict"], Trainer.save_model, SEAMS),
        ("_save_rng_state", ["self", "output_dir"], Trainer._save_checkpoint, SEAMS),
        ("_load_rng_state", ["self", "checkpoint"], Trainer._run_epoch, SEAMS),
        ("_set_signature_columns_if_needed", ["self"], Trainer._remove_unused_columns, SEAMS),
        ("_load_best_model", ["self"], Trainer._finalize_training, SEAMS),
        ("_hp_search_setup", ["self", "trial"], Trainer.train, SEAMS),
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"], Trainer._run_epoch, BASELINE),
        ("compute_loss", COMPUTE_LOSS, Trainer.training_step, BASELINE),
    ],
)
def test_trainer_calls_the_method_that_is_overridden(name, parameters, caller, where):
    calls = f"self.{name}(" in inspect.getsource(caller)
    found = list(inspect.signature(getattr(Trainer, name)).parameters)
    assert calls and found == parameters, moved(f"{caller.__qualname__} calls {name}{parameters}", name, where)


@pytest.mark.parametrize(
    ("name", "reader", "where"),
    [
        ("self._signature_columns", Trainer._remove_unused_columns, SEAMS),
        ("self.label_smoother", Trainer.compute_loss, SEAMS),
        *(
            (name, Trainer.training_step, SEAMS)
            for name in (
                ("self.loss_is_scaled_for_ga",)
                if trainer_seams.ASKS_FOR_SCALE
                else ("if (not self.model_accepts_loss_kwargs or num_items_in_batch is None) and", "self.compute_loss(")
            )
        ),
        ("loss / self.current_gradient_accumulation_steps", Trainer.training_step, SEAMS),
        ("self._trial", Trainer._hp_search_setup, SEAMS),
        ("self.hp_space", Trainer._hp_search_setup, SEAMS),
        ("self.model_init", Trainer.call_model_init, "hf_mixup/training/search.py"),
        ("args.logging_nan_inf_filter", Trainer._run_epoch, BASELINE),
        *([] if host.CHECKPOINTS_HOOKS else [("args.logging_nan_inf_filter", Trainer.evaluation_loop, BASELINE)]),
        ("args.dataloader_drop_last", Trainer._get_dataloader, BASELINE),
        ("args.average_tokens_across_devices", Trainer.compute_loss, BASELINE),
    ],
)
def test_trainer_reads_the_attribute_that_is_set(name, reader, where):
    assert name in inspect.getsource(reader), moved(f"{reader.__qualname__} reads {name}", name, where)


def test_a_smoothed_loss_is_divided_by_the_items_of_the_step():
    smoother, logits, labels = LabelSmoother(), {"logits": torch.zeros(2, 3)}, torch.tensor([0, 1])
    if trainer_seams.SMOOTHS_BY_STEP:
        assert smoother(logits, labels, num_items_in_batch=4) == smoother(logits, labels) / 2, moved(
            "LabelSmoother divides by num_items_in_batch", "SMOOTHS_BY_STEP", SEAMS
        )


def test_ddp_can_be_told_not_to_write_buffers():
    reader = inspect.getsource(DistributedDataParallel.will_sync_module_buffers)
    assert "self.require_forward_param_sync" in reader, moved("DDP reads the attribute", "_run_again", SEAMS)
    is_safe = "preserve_version_counter" in inspect.getsource(DistributedDataParallel._sync_buffers)
    assert is_safe != trainer_seams.DDP_WRITES_BUFFERS, moved("torch < 2.13 writes them", "DDP_WRITES_BUFFERS", SEAMS)


def test_trainer_calls_back_before_each_update(tmp_path):
    steps = []
    callback = trainer_seams.before_each_update(lambda: steps.append(trainer.state.global_step))
    trainer = make_trainer(tmp_path, trainer=Trainer, callbacks=[callback], gradient_accumulation_steps=2)
    trainer.train()
    assert steps == [0, 1], moved("Trainer calls on_pre_optimizer_step", "before_each_update", SEAMS)


def test_every_trainer_starts_with_the_default_callbacks(tmp_path):
    class Callback(TrainerCallback):
        pass

    try:
        for _ in range(2):
            trainer_seams.add_default_callback(Callback)
        args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
        found = [type(callback) for callback in Trainer(toy_model("bert"), args).callback_handler.callbacks]
    finally:
        DEFAULT_CALLBACKS.remove(Callback)
    assert found.count(Callback) == 1, moved("every Trainer has DEFAULT_CALLBACKS", "add_default_callback", SEAMS)


def test_the_rows_of_trainer_can_be_taken_away(tmp_path):
    for disable_tqdm in (True, False):
        trainer = make_trainer(tmp_path, trainer=Trainer, disable_tqdm=disable_tqdm)
        found = trainer.callback_handler.callbacks
        before = len(found)
        trainer_seams.without_rows(trainer)
        assert len(found) == before - 1, moved("Trainer shows its logs by one of two", "without_rows", SEAMS)


def test_what_a_checkpoint_lacks_is_reported_by_the_module_of_models(tmp_path, caplog):
    toy_model("bert").bert.save_pretrained(tmp_path)
    host.LOADING_LOGGER.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, host.LOADING_LOGGER.name):
            BertForSequenceClassification.from_pretrained(tmp_path)
    finally:
        host.LOADING_LOGGER.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if record.name == host.LOADING_LOGGER.name]
    assert any(host.LOAD_REPORT in line and "classifier.weight" in line for line in said), moved(
        "the report of loading is logged by the module of PreTrainedModel", "LOADING_LOGGER, LOAD_REPORT"
    )


def test_a_training_says_that_it_is_under_way_when_its_rows_are_loaded(tmp_path):
    seen = []

    class Looking(Trainer):
        def get_train_dataloader(self):
            seen.append((self.is_in_train, len(self.callback_handler.callbacks) > 0))
            return super().get_train_dataloader()

    trainer = make_trainer(tmp_path, trainer=Looking)
    trainer.train()
    fact = (
        "Trainer.is_in_train is True when it asks for its rows, and callback_handler.callbacks are those that it calls"
    )
    assert seen == [(True, True)] and not trainer.is_in_train, moved(fact, "HeldOutChecks", "training/held_out.py")
