"""Any module that returns logits: heads of one's own around AutoModel, other ways to call and to return, CNNs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    BatchEncoding,
    PretrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from hf_mixup import Mixup, MixupModel, MixupPlan, MixupTrainer, inspect_model
from hf_mixup.cli.inspect.toy import toy_model as any_toy_model
from hf_mixup.forward.anatomy.inputs import by_name, logits_of, model_config, only_argument, root_of
from hf_mixup.loss.token_task import TokenTask
from tests.plain_config import plain_config
from tests.toy_runs import arguments
from tests.zoo import toy_batch, toy_model

PARTNER = torch.tensor([2, 0, 3, 1])
SITES = [("word_embeddings", None), ("embeddings", None), *(("hidden", layer) for layer in range(3)), ("pooled", None)]


class Own(nn.Module):
    """A module around AutoModel, with a head that reads what it likes: no PreTrainedModel."""

    def __init__(self, head, **outputs):
        super().__init__()
        inner = toy_model("bert", **outputs)
        torch.manual_seed(0)
        self.config, self.model, self.head = inner.config, AutoModel.from_config(inner.config), head()
        self.model.load_state_dict(inner.bert.state_dict())

    def forward(self, input_ids, attention_mask=None, labels=None):
        outputs = self.model(input_ids, attention_mask=attention_mask)
        logits = self.head(outputs, attention_mask)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class FirstToken(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.classify = nn.Linear(width, 3)

    def forward(self, outputs, mask):
        return self.classify(outputs.last_hidden_state[:, 0])


class Mean(FirstToken):
    def forward(self, outputs, mask):
        mask = mask.unsqueeze(-1)
        return self.classify((outputs.last_hidden_state * mask).sum(1) / mask.sum(1))


class Max(FirstToken):
    def forward(self, outputs, mask):
        return self.classify(outputs.last_hidden_state.masked_fill(mask.unsqueeze(-1) == 0, -1e9).amax(1))


class Attention(FirstToken):
    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, outputs, mask):
        states = outputs.last_hidden_state
        weights = self.score(states).masked_fill(mask.unsqueeze(-1) == 0, -1e9).softmax(1)
        return self.classify((weights * states).sum(1))


class Recurrent(FirstToken):
    def __init__(self):
        super().__init__(16)
        self.lstm = nn.LSTM(32, 16, batch_first=True)

    def forward(self, outputs, mask):
        states, lengths = outputs.last_hidden_state, mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
        return self.classify(self.lstm(packed)[1][0][0])


class Dropouts(FirstToken):
    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList([nn.Dropout(0.1 * rate) for rate in range(1, 4)])

    def forward(self, outputs, mask):
        return sum(self.classify(drop(outputs.last_hidden_state[:, 0])) for drop in self.drops) / 3


class LastLayers(FirstToken):
    def __init__(self):
        super().__init__(64)

    def forward(self, outputs, mask):
        return self.classify(torch.cat([states[:, 0] for states in outputs.hidden_states[-2:]], -1))


HEADS = {
    FirstToken: "first",
    Mean: "mean",
    Max: "text",
    Attention: "text",
    Recurrent: "text",
    Dropouts: "first",
}


def assert_exact(model, mixup, given, site, layer=None):
    """At lambda 0 and 1 the logits are the clean ones of the partner, of the example itself."""
    with torch.no_grad():
        clean = logits_of(model(given))
        for lam in (torch.zeros(4), torch.ones(4), torch.tensor([0.0, 1.0, 1.0, 0.0])):
            with mixup.apply(MixupPlan(PARTNER, lam, site, layer), given):
                mixed = logits_of(model(given))
            expected = torch.where(lam.bool().unsqueeze(1), clean, clean[PARTNER])
            torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert (clean - clean[PARTNER]).abs().max() > 1e-4


class ByName(nn.Module):
    """Calls a model by name with what it is given."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __call__(self, batch):
        return self.model(**batch)


@pytest.mark.parametrize(("site", "layer"), SITES)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_heads_of_ones_own_are_exact_at_every_site(head, site, layer):
    model = Own(head).eval()
    mixup = Mixup(model, plain_config(site=site))
    assert mixup.prepare().root is model and mixup.prepare().readout == HEADS[head]
    assert_exact(ByName(model), mixup, toy_batch(), site, layer)


def test_a_head_that_reads_several_layers_is_mixed_below_and_above_them():
    model = Own(LastLayers, output_hidden_states=True).eval()
    with pytest.raises(ValueError, match="site='hidden 1'.* Mix at 'embeddings' or 'pooled', exact in this model."):
        Mixup(model, plain_config(site="hidden"))
    for site in ("word_embeddings", "embeddings", "pooled"):
        assert_exact(ByName(model), Mixup(model, plain_config(site=site)), toy_batch(), site)


# ---- Heads that return logits for each token ----


class EachToken(FirstToken):
    def forward(self, outputs, mask):
        return self.classify(self.states(outputs.last_hidden_state, mask))

    def states(self, states, mask):
        return states


class Convolved(EachToken):
    def __init__(self):
        super().__init__()
        self.convolve = nn.Conv1d(32, 32, 3, padding=1)

    def states(self, states, mask):
        return self.convolve(states.transpose(1, 2)).transpose(1, 2)


class BothWays(EachToken):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(32, 16, batch_first=True, bidirectional=True)

    def states(self, states, mask):
        return self.lstm(states)[0]


class Packed(BothWays):
    """Leaves out padding, by the mask of the text itself: at lambda = 0 it cuts longer partners off."""

    def states(self, states, mask):
        packed = nn.utils.rnn.pack_padded_sequence(states, mask.sum(1), batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def assert_tokens_are_exact(model, mixup, batch, site, layer=None):
    """At lambda 0 and 1 the logits of each token are those of the text that has it, which half way they are not."""
    with torch.no_grad():
        clean, text = model(**batch)["logits"], batch["attention_mask"].bool()
        for lam in (0.0, 1.0, 0.5):
            with mixup.apply(MixupPlan(PARTNER, torch.full((4,), lam), site, layer), batch):
                mixed = model(**batch)["logits"]
            if lam == 0.5:
                both = text & text[PARTNER]
                assert all((mixed - known)[both].abs().max() > 1e-3 for known in (clean, clean[PARTNER]))
            else:
                expected, read = (clean, text) if lam else (clean[PARTNER], text[PARTNER])
                torch.testing.assert_close(mixed[read], expected[read], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("site", "layer"), SITES)
@pytest.mark.parametrize("head", [EachToken, Convolved, BothWays])
def test_a_head_of_each_token_is_exact_at_every_site(head, site, layer, side):
    model = Own(head).eval()
    mixup, reads_neighbors = Mixup(model, plain_config(site=site)), head is not EachToken
    assert mixup.prepare().readout == "tokens" and isinstance(mixup.task, TokenTask)
    # What reads its neighbors reads padding, which is then mixed as text is.
    assert mixup.prepare().reads_padding == reads_neighbors
    assert_tokens_are_exact(model, mixup, toy_batch(side=side), site, layer)


def test_a_head_that_cuts_texts_off_by_their_own_mask_is_mixed_at_the_logits_only():
    model = Own(Packed).eval()
    for site in ("word_embeddings", "embeddings", "hidden"):
        with pytest.raises(ValueError, match=f"site='{site}.* at lambda = 0 and 1 differ.* Mix at 'pooled', exact"):
            Mixup(model, plain_config(site=site))
    assert_tokens_are_exact(model, Mixup(model, plain_config(site="pooled")), toy_batch(), "pooled")


class Tagger(Own):
    """A model with a label per token and a loss, which a trainer knows by its logits."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        output = super().forward(input_ids, attention_mask)
        return output if labels is None else output | {"loss": F.cross_entropy(output["logits"].mT, labels)}


class OwnForTokenClassification(Tagger):
    """One that a trainer knows by its name, also with mixup off."""


@pytest.mark.parametrize(
    ("kind", "mixup"),
    [(OwnForTokenClassification, plain_config()), (OwnForTokenClassification, None), (Tagger, "tmix")],
)
def test_a_head_of_each_token_is_trained_and_evaluated(tmp_path, kind, mixup):
    batch = toy_batch()
    labels = (batch["input_ids"] % 3).where(batch["attention_mask"].bool(), -100)
    rows = rows_of(batch, labels=labels)
    model, args = kind(EachToken), arguments(tmp_path, max_steps=2)
    trainer = MixupTrainer(model, args, train_dataset=rows, eval_dataset=rows, mixup=mixup)
    trainer.train()
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(F.cross_entropy(model.eval()(**batch)["logits"].mT, labels).item(), rel=1e-5)
    assert mixup is None or trainer.mixup.mixed


def test_blocks_are_named_from_the_module_that_returns_the_logits():
    model = Own(FirstToken).eval()
    assert Mixup(model, plain_config(site="hidden", blocks=["model.encoder.layer"])).prepare().depth == 3
    with pytest.raises(ValueError, match="'encoder.layer' is not a module of Own. Did you mean 'model.encoder.layer'"):
        Mixup(model, plain_config(site="hidden", blocks=["encoder.layer"]))


def test_quirks_hold_for_the_model_inside():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = any_toy_model("xlm")

        def forward(self, input_ids, attention_mask):
            return self.inner(input_ids, attention_mask=attention_mask).logits

    model = Around().eval()
    assert_exact(ByName(model), Mixup(model, plain_config(site="hidden")), toy_batch(), "hidden", 0)


@pytest.mark.parametrize("mixup", ["fixed", "span_mix", {"site": "pooled"}, None])
def test_a_module_of_ones_own_is_trained_and_evaluated(tmp_path, mixup):
    model, rows = Own(Attention), rows_of(toy_batch(), labels=[0, 1, 2, 1])
    said = copy.deepcopy(model.config.to_dict())
    trainer = MixupTrainer(model, arguments(tmp_path, max_steps=2), train_dataset=rows, eval_dataset=rows, mixup=mixup)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    # The Trainer of transformers turns the cache off.
    assert model.config.to_dict() | {"use_cache": None} == said | {"use_cache": None}
    assert (trainer.mixup is None) == (mixup is None) and (mixup is None or trainer.mixup.mixed)


def rows_of(batch, labels):
    return [
        {**{name: value[row] for name, value in batch.items()}, "labels": labels[row]} for row in range(len(labels))
    ]


# ---- Where the number of labels is from ----


class Wide(nn.Module):
    """Five logits, and a config inside that says something else."""

    def __init__(self):
        super().__init__()
        self.model, self.classify = toy_model("bert").bert, nn.Linear(32, 5)

    def forward(self, input_ids, attention_mask=None):
        return self.classify(self.model(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])


def test_the_config_of_the_module_itself_counts_before_that_of_the_model_inside():
    model = Wide()
    message = (
        r"Wide returns logits of shape \(11, 5\) for 11 examples, but the config of the bert inside has num_labels=3; "
        r"set model.config = transformers.PretrainedConfig\(num_labels=5\)"
    )
    with pytest.raises(ValueError, match=message):
        Mixup(model)
    model.config = PretrainedConfig(num_labels=5, problem_type="multi_label_classification")
    mixup = Mixup(model, plain_config(site="hidden"))
    targets = mixup.targets(torch.ones(4, 5))
    assert targets.shape == (4, 5) and mixup.task.problem_type(torch.ones(4, 5)) == "multi_label_classification"
    model.model.config.num_labels = 7
    assert model_config(model).num_labels == 5
    model.config.num_labels = 4
    with pytest.raises(ValueError, match="but its config has num_labels=4; set model.config.num_labels=5"):
        Mixup(model)


def test_what_is_wrapped_has_one_root():
    model = Own(FirstToken)
    for wrapped in (model, torch.compile(model), nn.DataParallel(model), nn.ModuleDict({"model": model})):
        assert root_of(wrapped) is model
    mixing = MixupModel(model)
    assert root_of(mixing) is mixing and isinstance(mixing.model, PreTrainedModel)
    assert mixing.train()(**toy_batch(), labels=torch.tensor([0, 1, 2, 0]))["loss"] > 0


# ---- Other ways to be called, and to return ----


class TakesDict(nn.Module):
    def __init__(self, head=Attention):
        super().__init__()
        self.body = Own(head)

    def forward(self, inputs, labels=None):
        return self.body(inputs["input_ids"], inputs["attention_mask"])["logits"], "more"


class TakesEncoding(TakesDict):
    def forward(self, features):
        return {"features": torch.ones(2), "scores": self.body(features.input_ids, features.attention_mask)["logits"]}


class TakesTokens(TakesDict):
    def forward(self, tokens):
        return None, self.body(tokens, (tokens != 1).long())["logits"]


@pytest.mark.parametrize(("site", "layer"), SITES)
@pytest.mark.parametrize("kind", [TakesDict, TakesEncoding, TakesTokens])
@pytest.mark.parametrize("head", [Mean, Attention])
def test_one_dict_and_one_tensor_are_taken(kind, head, site, layer):
    model, batch = kind(head).eval(), toy_batch()
    given = batch["input_ids"] if kind is TakesTokens else BatchEncoding(batch)
    mixup = Mixup(model, plain_config(site=site))
    assert_exact(model, mixup, given, site, layer)
    for named in (given, {only_argument(kind.forward): given}, batch):
        assert mixup.draw(named).lam.shape == (4,)


def test_spans_are_swapped_inside_of_a_dict():
    model, batch = TakesDict().eval(), toy_batch()
    mixup = Mixup(model, "span_mix")
    plan = mixup.draw(batch, epoch=1, progress=0.5)
    with torch.no_grad(), mixup.apply(plan, batch):
        mixed = model(dict(batch))[0]
    assert plan.active and not torch.allclose(mixed, model(batch)[0])
    assert torch.equal(batch["input_ids"], toy_batch()["input_ids"])


def test_a_dict_is_taken_by_the_trainer_and_by_mixup_model(tmp_path):
    def collate(rows):
        batch = torch.utils.data.default_collate(rows)
        return {"labels": batch.pop("labels"), "inputs": batch}

    rows = rows_of(toy_batch(), labels=[0, 1, 2, 1])
    args = arguments(tmp_path, max_steps=2, remove_unused_columns=False)
    trainer = MixupTrainer(TakesDict(), args, train_dataset=rows, data_collator=collate, mixup=plain_config())
    trainer.train()
    assert trainer.mixup.mixed == 2
    loss = MixupModel(TakesDict(), plain_config()).train()(toy_batch(), labels=torch.tensor([0, 1, 2, 0]))[0]
    assert loss.requires_grad


def test_inputs_that_are_not_known_beside_one_that_is_taken_alone_are_refused():
    with pytest.raises(ValueError, match="lengths: not known what it is beside 'tokens'; name inputs as transformers"):
        by_name(TakesTokens(), {"tokens": torch.ones(4, 3), "lengths": torch.ones(4)})


def test_logits_without_a_name_are_the_only_matrix():
    scores = torch.ones(2, 3)
    assert logits_of({"hidden": torch.ones(2, 3, 4), "scores": scores}) is scores
    assert logits_of((None, torch.ones(2), scores, torch.ones(2, 9))) is scores
    with pytest.raises(ValueError, match="returns features, scores, and it is not known which are its logits"):
        logits_of({"features": torch.ones(2, 9), "scores": scores})


def test_partners_from_outside_need_inputs_by_name():
    with pytest.raises(ValueError, match="partner='previous_batch': not known how in TakesDict"):
        Mixup(TakesDict(), plain_config(partner="previous_batch"))


# ---- Images, without anything of transformers ----


class Convolutions(nn.Module):
    def __init__(self, **about):
        super().__init__()
        torch.manual_seed(0)
        self.config = PretrainedConfig(num_labels=3, **about)
        channels = about.get("num_channels", 3)
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Tanh(), nn.Conv2d(8, 16, 3), nn.Tanh())
        self.classify = nn.Linear(16, 3)

    def forward(self, x):
        return self.classify(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolve = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, image):
        return image + self.convolve(image).tanh()


class Residuals(Convolutions):
    """The shape of models of timm: blocks in a sequence, and a size that the images must have."""

    def __init__(self):
        super().__init__()
        self.body.append(nn.Sequential(Residual(), Residual()))
        self.pretrained_cfg = {"input_size": (3, 20, 24)}

    def forward(self, image):
        assert image.shape[1:] == (3, 20, 24)
        return super().forward(image)


@pytest.mark.parametrize("site", ["input", "pooled"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_cnn_without_blocks_is_mixed_at_its_input_and_logits(site, channels):
    model = Convolutions(num_channels=channels, image_size=(9, 12)).eval()
    mixup = Mixup(model, plain_config(site=site))
    assert mixup.prepare().depth == 0
    assert_exact(model, mixup, torch.randn(4, channels, 9, 12), site)
    images = torch.randn(4, channels, 9, 12)
    assert mixup.draw(images).lam.shape == mixup.draw({"x": images}).lam.shape == (4,)


@pytest.mark.parametrize("changes", [{"site": "embeddings"}, {"site": "hidden"}, {"partner": "previous_batch"}])
def test_a_cnn_without_blocks_is_refused_where_they_are_needed(changes):
    message = (
        "Convolutions: no list of blocks .* inside of it; mix at 'pooled', or at 'input'.* the config's field blocks"
    )
    with pytest.raises(ValueError, match=message):
        Mixup(Convolutions(), plain_config(**{"site": "pooled", **changes}))
    found = inspect_model(Convolutions())
    assert {check.site: check.exact for check in found.sites} == {"input": True, "embeddings": False, "pooled": True}


@pytest.mark.parametrize("blocks", [None, ["body.4"]])
@pytest.mark.parametrize(("site", "layer"), [("input", None), ("embeddings", None), ("hidden", 0), ("hidden", 1)])
def test_blocks_in_a_sequence_are_found(blocks, site, layer):
    model = Residuals().eval()
    mixup = Mixup(model, plain_config(site=site, blocks=blocks))
    assert mixup.prepare().depth == 2
    assert_exact(model, mixup, torch.randn(4, 3, 20, 24), site, layer)


def test_what_could_not_be_called_is_said_for_each_way():
    with pytest.raises(ValueError, match="failed: given a tensor: RuntimeError: .*; given a dict: TypeError: "):
        Mixup(Convolutions(num_channels=1, image_size=2), plain_config(site="pooled"))


TIMM = {
    "resnet10t": ({}, None),
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 2, "embed_dim": 48}, ["timm_model.blocks"]),
}


@pytest.mark.parametrize("architecture", TIMM)
def test_models_of_timm_are_mixed(architecture):
    pytest.importorskip("timm", reason="timm, and torchvision built for this torch, are not installed")
    changes, blocks = TIMM[architecture]
    config = TimmWrapperConfig(architecture=architecture, num_labels=3, model_args=changes)
    model = AutoModelForImageClassification.from_config(config).eval()
    nn.init.normal_(model.timm_model.get_classifier().weight)
    images = torch.randn(4, 3, 64, 64)
    for site, layer in (("input", None), ("pooled", None), ("embeddings", None), ("hidden", 1)):
        assert_exact(model, Mixup(model, plain_config(site=site, blocks=blocks)), images, site, layer)
