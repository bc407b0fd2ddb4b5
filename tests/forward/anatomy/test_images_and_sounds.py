"""Image and audio classifiers: exact at the ends, continuous near them, gradients through every site; and training."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    BeitConfig,
    BeitForImageClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    HubertConfig,
    HubertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForAudioClassification,
)

from hf_mixup import Mixup, MixupModel, MixupPlan, MixupTrainer
from tests.plain_config import PLAIN, plain_config
from tests.toy_runs import arguments, clean_logits, same_weights, steady_bert, two_term

LABELS = 3
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
PATCHES = BLOCKS | {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WAVES = BLOCKS | {
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
}
WINDOWS = {"patch_size": 2, "embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "window_size": 4}
SPECTRA = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_source_positions": 20,
    "num_mel_bins": 8,
    "vocab_size": 60,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "classifier_proj_size": 16,
}
PIECES = BLOCKS | {"max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
MODELS = {
    "vit": (ViTForImageClassification, ViTConfig, PATCHES),
    "deit": (DeiTForImageClassification, DeiTConfig, PATCHES),
    "beit": (BeitForImageClassification, BeitConfig, PATCHES),
    "swin": (SwinForImageClassification, SwinConfig, {"image_size": 32, **WINDOWS}),
    "convnext": (ConvNextForImageClassification, ConvNextConfig, STAGES),
    "resnet": (ResNetForImageClassification, ResNetConfig, STAGES | {"embedding_size": 8, "layer_type": "basic"}),
    "wav2vec2": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, WAVES),
    "wav2vec2-stable": (
        Wav2Vec2ForSequenceClassification,
        Wav2Vec2Config,
        WAVES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    "wav2vec2-eager": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config, WAVES | {"attn_implementation": "eager"}),
    "hubert": (HubertForSequenceClassification, HubertConfig, WAVES),
    "whisper": (WhisperForAudioClassification, WhisperConfig, SPECTRA),
    "ast": (ASTForAudioClassification, ASTConfig, PIECES),
}
IMAGES = ("vit", "deit", "beit", "swin", "convnext", "resnet")
SPECTROGRAMS = {"whisper": ("input_features", 8, 40), "ast": ("input_values", 32, 16)}
PADDED = ("wav2vec2", "wav2vec2-stable", "wav2vec2-eager", "hubert")
CASES = [(name, False) for name in MODELS] + [(name, True) for name in PADDED]
# Of each pair of neighbours: both ends, near them, and between.
LAM = torch.tensor([1.0, 0.0, 1 - 1e-6, 1e-6, 0.5] * 2)
AT_ENDS, NEAR_ENDS, BETWEEN = ([0, 1, 5, 6], [2, 3, 7, 8], [4, 9])
SIZE = len(LAM)
PARTNER = torch.arange(SIZE).roll(3)
SAMPLES = 4800


def toy(name):
    """A fresh toy model in evaluation mode, its weights large, so that inputs matter."""
    torch.manual_seed(0)
    model_class, config_class, fields = MODELS[name]
    model = model_class(config_class(num_labels=LABELS, **fields)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 if parameter.dim() > 1 else parameter + noise * 0.1)
    return model


@cache
def mixup_of(name):
    return Mixup(toy(name), plain_config(site="pooled"))


def batch_of(name, is_padded=False):
    """Images, spectrograms, or waves; of different lengths where they are padded."""
    generator = torch.Generator().manual_seed(1)
    if name in IMAGES:
        return {"pixel_values": torch.randn(SIZE, 3, 32, 32, generator=generator)}
    if name in SPECTROGRAMS:
        input_name, *shape = SPECTROGRAMS[name]
        return {input_name: torch.randn(SIZE, *shape, generator=generator)}
    values, lengths = torch.randn(SIZE, SAMPLES, generator=generator), SAMPLES - 500 * (torch.arange(SIZE) % 6)
    mask = (torch.arange(SAMPLES) < lengths.unsqueeze(1)).long()
    return {"input_values": values * mask, "attention_mask": mask} if is_padded else {"input_values": values}


def sites_of(mixup, is_padded):
    whole = ["embeddings", "pooled"] if is_padded else ["input", "embeddings", "pooled"]
    return [(site, None) for site in whole] + [("hidden", layer) for layer in range(mixup.prepare().depth)]


def mixed_logits(mixup, batch, site, layer, lam=LAM):
    with mixup.apply(MixupPlan(PARTNER, lam, site, layer), batch):
        return mixup.model(**batch).logits


@pytest.mark.parametrize(("name", "is_padded"), CASES)
def test_every_site_is_exact_and_continuous(name, is_padded):
    mixup, batch = mixup_of(name), batch_of(name, is_padded)
    clean = clean_logits(mixup.model, batch)
    own, partners = (end / clean.abs().max() for end in (clean, clean[PARTNER]))
    nearest = torch.where(LAM.round().bool().unsqueeze(1), own, partners)
    for site, layer in sites_of(mixup, is_padded):
        with torch.no_grad():
            mixed = mixed_logits(mixup, batch, site, layer) / clean.abs().max()
        error = (mixed - nearest).abs().amax(1)
        assert error[AT_ENDS].max() < 1e-4, (site, layer)
        assert error[NEAR_ENDS].max() < 1e-2, (site, layer)
        for end in (own, partners):
            assert (mixed - end)[BETWEEN].abs().amax(1).min() > 1e-3, (site, layer)


@pytest.mark.parametrize(("name", "is_padded"), CASES)
def test_gradients_are_finite_and_reach_both_sides_of_every_site(name, is_padded):
    mixup, batch = mixup_of(name), batch_of(name, is_padded)
    model = mixup.model
    entrance = next(module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d)))
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    parts = [entrance, *(call.module for call in mixup.prepare().calls), head]
    for site, layer in sites_of(mixup, is_padded):
        model.zero_grad()
        mixed_logits(mixup, batch, site, layer, torch.full((SIZE,), 0.3)).square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), (site, layer)
        for part in parts:
            assert any(p.grad is not None and p.grad.any() for p in part.parameters()), (site, layer, type(part))
    model.zero_grad()


@pytest.mark.parametrize(
    "rule", ["hf_mixup.forward.anatomy.masks.mix_keep", "hf_mixup.forward.sites.BothTexts.register"]
)
def test_padded_sounds_need_the_masks_and_the_read_out(monkeypatch, rule):
    """The control for the tests above: without the rule a model is refused."""
    without = {"mix_keep": lambda keep, *rest: keep, "register": lambda *rest: []}
    monkeypatch.setattr(rule, without[rule.rpartition(".")[2]])
    with pytest.raises(ValueError, match="in Wav2Vec2ForSequenceClassification the logits .* differ"):
        Mixup(toy("wav2vec2"), plain_config(site="hidden", layers=0))


def test_padded_sounds_are_not_mixed_at_the_input():
    mixup, batch = mixup_of("wav2vec2"), batch_of("wav2vec2", is_padded=True)
    with pytest.raises(ValueError, match="attention_mask: site='input' mixes inputs of one length; leave the mask out"):
        mixed_logits(mixup, batch, "input", None)


def test_texts_are_not_mixed_at_the_input():
    with pytest.raises(ValueError, match="site='input': BertForSequenceClassification takes tokens.*'embeddings'"):
        Mixup(steady_bert(), "input_mixup")


def test_images_have_no_token_lookup():
    with pytest.raises(ValueError, match="site='word_embeddings': ViTForImageClassification has no"):
        Mixup(toy("vit"), "word_mixup")


# ---- Boxes ----


@pytest.mark.parametrize("name", IMAGES)
def test_a_box_is_exact_at_both_ends_and_a_cut_image_between(name):
    mixup, pixels = mixup_of(name), batch_of(name)["pixel_values"]
    box = torch.tensor([[0, 0, 0, 0], [0, 32, 0, 32], [3, 20, 8, 32], [0, 5, 31, 32], [16, 32, 0, 16]] * 2)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    plan = MixupPlan(PARTNER, 1 - area / 32**2, "input", box=box)
    cut = pixels.clone()
    for row, (top, bottom, left, right) in enumerate(box.tolist()):
        cut[row, :, top:bottom, left:right] = pixels[PARTNER[row], :, top:bottom, left:right]
    with torch.no_grad(), mixup.apply(plan, {"pixel_values": pixels}):
        mixed = mixup.model(pixel_values=pixels).logits
    clean = clean_logits(mixup.model, {"pixel_values": pixels})
    torch.testing.assert_close(mixed, clean_logits(mixup.model, {"pixel_values": cut}))
    torch.testing.assert_close(mixed[[0, 5]], clean[[0, 5]])
    torch.testing.assert_close(mixed[[1, 6]], clean[PARTNER][[1, 6]])


def test_boxes_of_earlier_batches():
    mixup = Mixup(toy("vit"), plain_config(site="input", interpolation="box", partner="previous_batch", lam=0.5))
    labels, batches = torch.arange(SIZE) % LABELS, [torch.randn(SIZE, 3, 32, 32) for _ in range(2)]
    for pixels in batches:
        plan = mixup.draw({"pixel_values": pixels}, labels=labels)
        with torch.no_grad(), mixup.apply(plan, {"pixel_values": pixels}):
            mixed = mixup.model(pixel_values=pixels).logits
    cut, theirs = batches[1].clone(), torch.cat([part["pixel_values"] for part in plan.outside.parts])
    for row, (top, bottom, left, right) in enumerate(plan.box.tolist()):
        cut[row, :, top:bottom, left:right] = theirs[row, :, top:bottom, left:right]
    assert (plan.lam < 1).all()
    torch.testing.assert_close(mixed, clean_logits(mixup.model, {"pixel_values": cut}))
    targets = plan.lam.unsqueeze(1) * F.one_hot(labels, LABELS) + (1 - plan.lam).unsqueeze(1) * plan.outside.targets
    torch.testing.assert_close(mixup.targets(labels, plan), targets)


@pytest.mark.parametrize("name", ["bert", "wav2vec2", "whisper", "ast"])
def test_boxes_are_for_images(name):
    model = steady_bert() if name == "bert" else toy(name)
    with pytest.raises(ValueError, match=f"interpolation='box': {type(model).__name__} takes no pixel_values"):
        Mixup(model, "cutmix")


# ---- Training ----


def images(count=48):
    """Noise that is brighter in one colour, which tells the class."""
    pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels[torch.arange(count), torch.arange(count) % LABELS] += 1
    return [{"pixel_values": image, "labels": number % LABELS} for number, image in enumerate(pixels)]


def sounds(count=48):
    """Tones of different lengths, whose pitch tells the class."""
    time = torch.arange(SAMPLES)
    waves = [torch.sin(time[: 1600 + 400 * (number % 7)] * (number % LABELS + 1) / 10) for number in range(count)]
    return [{"input_values": wave.numpy(), "labels": number % LABELS} for number, wave in enumerate(waves)]


KINDS = {
    "vit": (images, {}, "input_mixup"),
    "resnet": (images, {}, "cutmix"),
    "wav2vec2": (sounds, {"processing_class": Wav2Vec2FeatureExtractor(return_attention_mask=True)}, "manifold"),
}


def trainer_of(kind, folder, trainer=MixupTrainer, **options):
    rows, own, _ = KINDS[kind]
    if "mixup" in options:
        own = own | {"mixup": options.pop("mixup")}
    torch.manual_seed(0)
    model_class, config_class, fields = MODELS[kind]
    model = model_class(config_class(num_labels=LABELS, **fields))
    return trainer(model=model, args=arguments(folder, **options), train_dataset=rows(), eval_dataset=rows(), **own)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_evaluation_is_unmixed(kind, tmp_path):
    trainer = trainer_of(kind, tmp_path, mixup=KINDS[kind][2], max_steps=60, learning_rate=2e-3, logging_steps=10)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < logs[0]["loss"] and logs[-1]["mixup_accuracy"] > 0.5
    assert ("hidden" if kind == "wav2vec2" else "input") in logs[0]["mixup_site"]
    after, batches = trainer.evaluate()["eval_loss"], list(trainer.get_eval_dataloader())
    logits = torch.cat([clean_logits(trainer.model.eval(), batch) for batch in batches])
    expected = F.cross_entropy(logits, torch.cat([batch["labels"] for batch in batches])).item()
    assert after == pytest.approx(expected, rel=1e-5) and after < 0.8 * before


@pytest.mark.parametrize("kind", KINDS)
def test_without_mixup_training_is_that_of_trainer(kind, tmp_path):
    models = []
    for options in ({"trainer": Trainer}, {"mixup": None}, {"mixup": KINDS[kind][2]}):
        trainer = trainer_of(kind, tmp_path, max_steps=3, **options)
        trainer.train()
        models.append(trainer.model)
    plain, off, mixed = models
    assert same_weights(plain, off) and not same_weights(off, mixed)


def test_a_mixup_model_of_images_returns_the_mixed_loss():
    model = MixupModel(toy("vit"), "input_mixup").train()
    batch, labels = batch_of("vit"), torch.arange(SIZE) % LABELS
    plan = MixupPlan(PARTNER, torch.full((SIZE,), 0.3), "input")
    model.mixup.draw = lambda *args, **kwargs: plan
    outputs = model(**batch, labels=labels)
    torch.testing.assert_close(outputs.loss, two_term(F.cross_entropy, outputs.logits, labels, plan))
    assert not torch.allclose(outputs.logits, clean_logits(toy("vit"), batch), atol=1e-2)


def test_a_lambda_for_each_dimension_is_for_texts():
    kind, config, sizes = MODELS["vit"]
    with pytest.raises(ValueError, match="interpolation='dimensions': ViT.* no tokens"):
        Mixup(kind(config(**sizes)), PLAIN | {"interpolation": "dimensions"})
