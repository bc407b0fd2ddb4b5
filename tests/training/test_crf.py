"""A tagger whose loss is that of a CRF: mixed labels would leave its transitions untrained, so it is refused."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification, DefaultDataCollator, Trainer

from hf_mixup import MixupMixin, MixupModel, MixupTrainer
from tests.plain_config import PLAIN
from tests.toy_runs import arguments
from tests.zoo import COMMON, FAMILIES, VOCAB

TAGS, LENGTH = 4, 6
ROWS = [{"input_ids": torch.randint(5, VOCAB, (LENGTH,)), "labels": torch.randint(TAGS, (LENGTH,))} for _ in range(8)]


class CrfForTokenClassification(BertForTokenClassification):
    """The loss is the mean over tokens, as with `reduction="token_mean"` of pytorch-crf."""

    def __init__(self, config):
        super().__init__(config)
        # As pytorch-crf starts them: so near to 0 that the loss is nearly the cross-entropy of every token.
        self.transitions = nn.Parameter(torch.empty(TAGS, TAGS).uniform_(-0.1, 0.1))

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, labels=None):
        outputs = super().forward(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        if labels is not None:
            scores, path = outputs.logits, outputs.logits.gather(-1, labels.unsqueeze(-1)).sum((1, 2))
            path = path + self.transitions[labels[:, :-1], labels[:, 1:]].sum(1)
            every = scores[:, 0]
            for place in range(1, LENGTH):
                every = torch.logsumexp(every.unsqueeze(2) + self.transitions, 1) + scores[:, place]
            outputs.loss = (every.logsumexp(1) - path).mean() / LENGTH
        return outputs


class OnTrainer(MixupMixin, Trainer):
    pass


def crf():
    torch.manual_seed(0)
    return CrfForTokenClassification(BertConfig(**COMMON | {"num_labels": TAGS} | FAMILIES["bert"]))


def trainer_of(kind, folder, mixup):
    given = {"train_dataset": ROWS, "data_collator": DefaultDataCollator(), "mixup": mixup}
    return kind(model=crf(), args=arguments(folder, max_steps=1), **given)


@pytest.mark.parametrize("kind", [MixupTrainer, OnTrainer, MixupModel])
def test_a_crf_is_refused(tmp_path, kind):
    model, batch = crf().eval(), DefaultDataCollator()(ROWS)
    outputs = model(**batch)
    tokens = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())
    # Told by its parameters: the number is nearly that of a tagger without a CRF.
    assert outputs.loss.item() != tokens.item()
    torch.testing.assert_close(outputs.loss, tokens, rtol=0.02, atol=0)
    mixup = PLAIN | {"site": "embeddings", "alpha": 1.0, "mode": "batch"}
    with pytest.raises(ValueError, match="CrfForTokenClassification computes by itself has parameters that its logits"):
        if kind is MixupModel:
            MixupModel(crf().train(), mixup)(**batch)
        else:
            trainer_of(kind, tmp_path, mixup).train()


def test_without_mixup_it_trains_its_transitions(tmp_path):
    trainer = trainer_of(MixupTrainer, tmp_path, None)
    before = trainer.model.transitions.detach().clone()
    trainer.train()
    assert not torch.equal(trainer.model.transitions, before)
