"""One table of inputs; what a block is given is mixed, known to hold nothing of an example, or refused."""

import dataclasses
import enum

import pytest
import torch
from torch import nn
from transformers import DynamicCache, PretrainedConfig, ViTConfig, ViTForImageClassification
from transformers.modeling_outputs import BaseModelOutput

from hf_mixup import Mixup, MixupPlan
from hf_mixup.forward.anatomy.inputs import (
    FLOAT_INPUTS,
    INPUTS,
    MASKS,
    PROBED,
    batch_size,
    bind,
    map_arguments,
    map_tensors,
    unbind,
)
from tests.plain_config import plain_config
from tests.zoo import toy_batch, toy_model

PARTNER = torch.tensor([2, 0, 3, 1])


@dataclasses.dataclass
class Carrier:
    """An object of the user's own that holds a row for each example."""

    padding: torch.Tensor


class Kind(enum.Enum):
    WHOLE = 1


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.feed_forward = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU())

    def forward(self, states, extra, kind=None):
        padding = extra.padding if isinstance(extra, Carrier) else extra["parts"][0]
        states = states + self.attention(states, states, states, key_padding_mask=padding)[0]
        return states + self.feed_forward(states)


class OwnModel(nn.Module):
    """A classifier of the user's own, whose blocks are given what `carry` makes of the padding mask."""

    def __init__(self, carry, kind=None):
        super().__init__()
        self.config = PretrainedConfig(num_labels=3, pad_token_id=1, vocab_size=60)
        self.embedding, self.blocks = nn.Embedding(60, 32), nn.ModuleList([Block(), Block()])
        self.classify, self.carry, self.kind = nn.Linear(32, 3), carry, kind

    def forward(self, input_ids, attention_mask):
        states, extra = self.embedding(input_ids), self.carry((attention_mask == 0).float() * -1e9)
        for block in self.blocks:
            states = block(states, extra, kind=self.kind)
        return {"logits": self.classify(states[:, 0])}


def own_model(*args):
    torch.manual_seed(0)
    return OwnModel(*args).eval()


@pytest.mark.parametrize("kind", [None, 3, "whole", Kind.WHOLE, torch.float32, len, PretrainedConfig(), DynamicCache()])
def test_masks_inside_containers_are_mixed_beside_values_that_hold_nothing(kind):
    model, batch = own_model(lambda padding: {"parts": [padding, None, 1]}, kind), toy_batch()
    mixup = Mixup(model, plain_config(site="embeddings"))
    with torch.no_grad():
        clean = model(**batch)["logits"]
        for lam, expected in ((1.0, clean), (0.0, clean[PARTNER])):
            with mixup.apply(MixupPlan(PARTNER, torch.full((4,), lam), "embeddings"), batch):
                torch.testing.assert_close(model(**batch)["logits"], expected)


def test_an_object_that_is_not_known_is_refused_when_the_model_is_probed():
    with pytest.raises(ValueError, match="extra: a block is given an object of type Carrier.*tuples, lists and dicts"):
        Mixup(own_model(Carrier), plain_config(site="embeddings"))


@pytest.mark.parametrize(
    "made", [lambda: Carrier(torch.ones(4)), lambda: {torch.ones(4)}, lambda: torch.ones(4).numpy()]
)
def test_an_object_that_is_not_known_is_refused_when_it_comes_later(made):
    model, batch = own_model(lambda padding: {"parts": [padding]}), toy_batch()
    mixup = Mixup(model, plain_config(site="embeddings"))
    model.kind = made()
    with (
        pytest.raises(ValueError, match=f"kind: a block is given an object of type {type(model.kind).__name__}"),
        mixup.apply(MixupPlan(PARTNER, torch.full((4,), 0.5), "embeddings"), batch),
    ):
        model(**batch)


def test_tensors_are_found_in_every_container():
    pair = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    value = {"a": (torch.ones(1), [torch.ones(1)]), 0: BaseModelOutput(torch.ones(1)), "packed": pair}
    paths = []
    mapped = map_tensors(value, "x", lambda path, tensor: paths.append(path) or tensor + 1)
    assert paths == ["x.a.0", "x.a.1.0", "x.0.last_hidden_state", "x.packed.0", "x.packed.1"]
    assert mapped["a"][1][0] == 2 and mapped[0].last_hidden_state == 2 and type(mapped["packed"]) is type(pair)
    names, args, kwargs = ["states", "mask", "scale"], (1, 2), {"scale": 3}
    arguments = map_arguments(bind(names, args, kwargs), lambda path, tensor: tensor)
    assert unbind(names, arguments, args, kwargs) == (args, kwargs)


def test_the_inputs_are_those_that_are_probed_mixed_on_a_line_or_refused():
    assert PROBED == ("input_ids", "pixel_values", "input_values", "input_features")
    assert FLOAT_INPUTS == ("pixel_values", "pixel_values_videos", "input_values", "input_features", "inputs_embeds")
    assert MASKS == ("attention_mask", "pixel_mask")
    for name in PROBED:
        assert batch_size({"labels": torch.ones(3), name: torch.ones(5, 2)}) == 5
    assert batch_size({"input_ids": None, "inputs_embeds": torch.ones(2, 3, 4)}) == 2
    with pytest.raises(ValueError, match="none of input_ids, pixel_values, .* or inputs_embeds, only text"):
        batch_size({"text": torch.ones(2)})


@pytest.mark.parametrize("name", [name for name, given in INPUTS.items() if given.refused])
def test_inputs_that_make_no_sense_in_a_mixture_are_refused(name):
    model, batch = toy_model("t5"), toy_batch()
    mixup = Mixup(model, plain_config(site="embeddings"))
    value = DynamicCache() if name == "past_key_values" else batch["attention_mask"]
    with (
        pytest.raises(ValueError, match=f"{name}: leave it out"),
        mixup.apply(MixupPlan(PARTNER, torch.full((4,), 0.5), "embeddings"), batch | {name: value}),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", [name for name in FLOAT_INPUTS if name != "inputs_embeds"])
def test_what_enters_after_the_token_lookup_is_not_mixed_before_it(name):
    model, batch = toy_model("bert"), toy_batch()
    mixup = Mixup(model, plain_config(site="word_embeddings"))
    with (
        pytest.raises(ValueError, match=f"{name}: enters the text after the token lookup"),
        mixup.apply(MixupPlan(PARTNER, torch.full((4,), 0.5), "word_embeddings"), batch | {name: torch.ones(4, 3)}),
    ):
        raise AssertionError


@pytest.mark.parametrize("name", MASKS)
def test_padded_inputs_are_not_mixed_before_the_model(name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
    mixup = Mixup(ViTForImageClassification(ViTConfig(**sizes)), plain_config(site="input"))
    batch = {"pixel_values": torch.ones(4, 3, 8, 8), name: torch.ones(4, 8, 8)}
    with (
        pytest.raises(ValueError, match=f"{name}: site='input' mixes inputs of one length"),
        mixup.apply(MixupPlan(PARTNER, torch.full((4,), 0.5), "input"), batch),
    ):
        raise AssertionError
