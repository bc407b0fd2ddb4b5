"""Mixup as the papers' own code does it, for comparison: BERT's forward copied, and a pass for each of the two texts.

Written anew after https://github.com/SALT-NLP/MixText (TMix) and https://github.com/clovaai/ssmix (TMix, SSMix). Masks
are handled as there, so what these compute is not to be used: only what it costs is of interest.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer


def mixed_loss(logits: Tensor, labels: Tensor, others: Tensor, lam: Tensor | float) -> Tensor:
    own, other = (F.cross_entropy(logits, target, reduction="none") for target in (labels, others))
    return (lam * own + (1 - lam) * other).mean()


class ReferenceTMix(Trainer):
    """Chen, Yang and Yang 2020: both texts run through the layers up to the one at which they are mixed."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        bert, labels, partner = model.bert, inputs["labels"], torch.randperm(len(inputs["labels"]))
        depth = len(bert.encoder.layer)
        last = random.choice([round(depth * layer / 12) - 1 for layer in (7, 9, 12)])
        lam = float(np.random.beta(0.4, 0.4))
        lam = max(lam, 1 - lam)
        mask = inputs["attention_mask"]
        masks = [(1.0 - m[:, None, None].float()) * torch.finfo(torch.float32).min for m in (mask, mask[partner])]
        states = [bert.embeddings(input_ids=ids) for ids in (inputs["input_ids"], inputs["input_ids"][partner])]
        for number, layer in enumerate(bert.encoder.layer):
            states = [layer(state, own) for state, own in zip(states, masks, strict=False)]
            if number == last:
                states = [lam * states[0] + (1 - lam) * states[1]]
        logits = model.classifier(model.dropout(bert.pooler(states[0])))
        return mixed_loss(logits, labels, labels[partner], lam)


class ReferenceSentMix(Trainer):
    """Sun et al. 2020: the sentence vectors of two whole passes are mixed."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        inputs = dict(inputs)
        labels, partner = inputs.pop("labels"), torch.randperm(len(inputs["input_ids"]))
        lam = float(np.random.beta(1.0, 1.0))
        own = model.bert(**inputs).pooler_output
        other = model.bert(**{name: value[partner] for name, value in inputs.items()}).pooler_output
        logits = model.classifier(model.dropout(lam * own + (1 - lam) * other))
        return mixed_loss(logits, labels, labels[partner], lam)


class ReferenceSSMix(Trainer):
    """Yoon et al. 2021: the halves of a batch exchange spans; saliency for both directions, two clean terms."""

    window = 0.1

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        half = len(inputs["labels"]) // 2
        left, right = (
            {name: value[rows] for name, value in inputs.items()} for rows in (slice(half), slice(half, None))
        )
        losses = [model(**left).loss, model(**right).loss]
        for one, other in ((left, right), (right, left)):
            ids, lam = self.exchange(model, one, other)
            logits = model(input_ids=ids, attention_mask=one["attention_mask"]).logits
            losses.append(mixed_loss(logits, one["labels"], other["labels"], lam))
        return torch.stack(losses).mean()

    def exchange(self, model: Any, one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Replace the least salient span of each text by the most salient one of its partner, text by text."""
        salient_other, salient_one = self.saliency(model, other), self.saliency(model, one)
        ids, lam = one["input_ids"].clone(), torch.ones(len(one["labels"]))
        lengths = [batch["attention_mask"].sum(1).tolist() for batch in (one, other)]
        for row, (length, other_length) in enumerate(zip(*lengths, strict=True)):
            size = max(int((length - 2) * self.window), 1)
            if other_length < size:
                continue
            pooled = [
                F.avg_pool1d(values[row, :end][None, None], size, stride=1)[0, 0]
                for values, end in ((salient_one, length), (salient_other, other_length))
            ]
            pooled[0][[0, -1]], pooled[1][[0, -1]] = 100.0, -100.0
            start, source = int(pooled[0].argmin()), int(pooled[1].argmax())
            ids[row, start : start + size] = other["input_ids"][row, source : source + size]
            lam[row] = 1 - size / (length - 2)
        return ids, lam

    def saliency(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """Norm of the loss's gradient at the embedding of each position; gradients of the weights are computed too."""
        embedded: list[Tensor] = []

        def keep(module: Any, args: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_(True))
            return embedded[0]

        handle = model.bert.embeddings.register_forward_hook(keep)
        model(**batch).loss.backward()
        handle.remove()
        model.zero_grad()
        norms = embedded[0].grad.square().mean(2).sqrt()
        return norms / norms.amax(1, keepdim=True)


REFERENCES = {
    "reference tmix": ReferenceTMix,
    "reference sent_mixup": ReferenceSentMix,
    "reference ssmix": ReferenceSSMix,
}
