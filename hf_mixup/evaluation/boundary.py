"""The decision boundary of a text classifier: what happens between two texts, and close to one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_mixup.evaluation.predictions import diverged
from hf_mixup.forward.anatomy.anatomy import Anatomy
from hf_mixup.forward.anatomy.inputs import logits_of, model_config
from hf_mixup.forward.anatomy.probe_batch import undisturbed
from hf_mixup.forward.saliency import by_text, changed_entry, entry_gradient
from hf_mixup.loss.task import problem_type_of
from hf_mixup.mixup import Mixup
from hf_mixup.plan.mixup_plan import MixupPlan

# A prediction is uncertain if its largest probability is below this.
UNCERTAIN_BELOW = 0.75

# The probabilities of each decision: logits (texts, labels) in, (texts, decisions, outcomes) out.
DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "single_label_classification": lambda logits: logits.softmax(-1).unsqueeze(1),
    "multi_label_classification": lambda logits: torch.stack([logits.sigmoid(), (-logits).sigmoid()], -1),
}


def paths(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], points: int = 11) -> dict[str, Any]:
    """Confidence and loss on the straight lines between texts, mixed at the embeddings.

    Each text of a batch is paired with the next one (the first comes after the last); in single-label tasks with the
    next one of another label, if the batch has one. A batch of one text is left out. Padding does not matter: at
    both ends the outputs are those of the clean texts. The model runs in evaluation mode and is left as it was.

    Args:
        model (`nn.Module`): a sequence classifier, also wrapped.
        batches (`Iterable` of `Mapping`): inputs of the model and `labels`, on any device.
        points (`int`, defaults to 11): positions on each line, evenly spaced, both ends among them; 2 or more.

    Returns:
        `dict[str, Any]`: means over pairs, as plain floats. Of multi-label tasks each label is a decision between two
        outcomes, and means are over pairs and labels. The three that need probabilities are `None` for regression;
        all but `t` are nan if a logit or a loss is not finite. `t` (`list`): the positions, 0 for the text itself to 1
        for its partner; `confidence` (`list`): the largest probability at each; `loss` (`list`): the loss at each, in
        nats or squared units of the label, against the target mixed alike; `uncertain_width`: share of the line on
        which the largest probability is below 0.75 (0 to 1); `path_loss`: mean loss over the line; `steepness`: largest
        change of the probabilities between neighboring positions (total variation, 0 to 1) per length of the line.

    Raises:
        ValueError: for less than 2 points, no pairs, missing or unfit labels, or a model that cannot be mixed.
    """
    if points < 2:
        raise ValueError(f"points={points}: a line needs both of its ends, so 2 or more.")
    batches, t = list(batches), torch.linspace(0, 1, points, dtype=torch.float64)
    mixup = _mixup_of(model, batches)
    if mixup is None:
        return _unmeasured(t, problem_type_of(model_config(model), batches[0]["labels"]))
    root, losses, confidences, changes = mixup.prepare().root, [], [], []
    with undisturbed(root), torch.no_grad():
        for inputs, labels in _split(batches, root):
            problem_type = mixup.task.problem_type(labels)
            if len(labels) < 2:
                continue
            logits, loss = _walk(mixup, inputs, labels, _partners(labels, problem_type), t)
            if diverged(logits) or diverged(loss):
                return _unmeasured(t, problem_type)
            losses.append(loss)
            if problem_type in DECISIONS:
                probabilities = torch.stack([DECISIONS[problem_type](at) for at in logits])
                confidences.append(probabilities.amax(-1))
                changes.append(probabilities.diff(dim=0).abs().sum(-1).amax(0) / 2)
    if not losses:
        raise ValueError("batches: no pair of texts in them; a batch needs two texts or more.")
    mean = torch.cat(losses, 1).mean(1)
    found = {"t": t.tolist(), "loss": mean.tolist(), "path_loss": torch.trapezoid(mean, t).item()}
    return found | _certainty(confidences, changes, t)


def gradient_norm(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Mean over texts of the norm of the loss's gradient with respect to the text's embeddings.

    The gradient is taken at what enters the first block (of an encoder with a decoder, the encoder's), over all tokens
    of the text; padding is not counted. The model runs in evaluation mode and is left as it was; gradients of its
    parameters are neither computed nor touched.

    Args:
        model, batches: as for `paths`.

    Returns:
        `float`: in units of the loss per unit of the embeddings; nan if it is not finite.

    Raises:
        ValueError: for no texts, missing or unfit labels, or a model whose first block cannot be found.
    """
    batches, norms = list(batches), []
    mixup = _mixup_of(model, batches)
    if mixup is None:
        return math.nan
    anatomy = mixup.prepare()
    with undisturbed(anatomy.root):
        for inputs, labels in _split(batches, anatomy.root):
            gradient = entry_gradient(anatomy, inputs, partial(mixup.loss, labels=labels, reduction="none"))
            kept = _kept(inputs, gradient)
            norms.append((gradient.float() * kept).flatten(1).norm(dim=1).cpu())
    if not norms:
        raise ValueError("batches: no texts in them.")
    norm = torch.cat(norms)
    return math.nan if diverged(norm) else norm.mean().item()


def embedding_noise_logits(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], strength: float, seed: int
) -> np.ndarray:
    """Logits of texts whose embeddings are disturbed by Gaussian noise.

    The noise is added to what enters the first block (of an encoder with a decoder, the encoder's), not to padding. It
    is drawn from a stream of its own, batch after batch, so other batches or other padding get other noise; the same
    batches get the same noise on every device. The model runs in evaluation mode and is left as it was.

    Args:
        model, batches: as for `paths`; labels are not looked at.
        strength (`float`): standard deviation of the noise, in units of the root mean square of what enters the first
            block, over all tokens of the batch but padding. 0 gives the clean logits.
        seed (`int`): seed of the noise.

    Returns:
        `np.ndarray`: float32, shape (texts, labels); the clean logits of a model that has diverged.

    Raises:
        ValueError: for a strength below 0, no texts, or a model whose first block cannot be found.
    """
    if not 0 <= strength < float("inf"):
        raise ValueError(f"strength={strength}: expected a number of 0 or more.")
    batches, logits = list(batches), []
    mixup = _mixup_of(model, batches)
    if mixup is None:
        return _clean_logits(model, batches)
    anatomy, generator = mixup.prepare(), torch.Generator().manual_seed(seed)
    with undisturbed(anatomy.root), torch.no_grad():
        for inputs, _ in _split(batches, anatomy.root):
            with changed_entry(anatomy, _noise(anatomy, inputs, strength, generator)):
                logits.append(anatomy.float_logits(inputs))
    if not logits:
        raise ValueError("batches: no texts in them.")
    return torch.cat(logits).numpy()


def _mixup_of(model: nn.Module, batches: list[Mapping[str, Tensor]]) -> Mixup | None:
    """What mixes the model at its embeddings; `None` for a model whose logits of these texts are not all finite."""
    try:
        mixup = Mixup(model, {"site": "embeddings"})
        mixup.prepare()
    except ValueError:
        # Sites are found by what moves the logits, and nothing moves those of a model that has diverged.
        if batches and diverged(_clean_logits(model, batches)):
            return None
        raise
    return mixup


def _clean_logits(model: nn.Module, batches: list[Mapping[str, Tensor]]) -> np.ndarray:
    """The logits of the texts as they are: float32, (texts, labels)."""
    with undisturbed(model), torch.no_grad():
        return torch.cat([logits_of(model(**inputs)).float().cpu() for inputs, _ in _split(batches, model)]).numpy()


def _unmeasured(t: Tensor, problem_type: str) -> dict[str, Any]:
    """What `paths` returns for a model that has diverged."""
    line, nan = [math.nan] * len(t), math.nan
    measured = {"confidence": line, "uncertain_width": nan, "steepness": nan}
    certainty = measured if problem_type in DECISIONS else dict.fromkeys(measured)
    return {"t": t.tolist(), "loss": line, "path_loss": nan} | certainty


def _certainty(confidences: list[Tensor], changes: list[Tensor], t: Tensor) -> dict[str, Any]:
    """Means, from the largest probabilities (points, pairs, decisions) and changes (pairs, decisions) of each batch."""
    if not confidences:
        return dict.fromkeys(("confidence", "uncertain_width", "steepness"))
    confidence = torch.cat(confidences, 1)
    uncertain = (confidence < UNCERTAIN_BELOW).double().mean((1, 2))
    return {
        "confidence": confidence.mean((1, 2)).tolist(),
        "uncertain_width": torch.trapezoid(uncertain, t).item(),
        "steepness": torch.cat(changes).mean().item() * (len(t) - 1),
    }


def _split(batches: Iterable[Mapping[str, Tensor]], root: nn.Module) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Inputs on the device of the model, and labels as they are (`None` if there are none)."""
    device = next(root.parameters()).device
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items() if name != "labels"}, batch.get("labels")


def _partners(labels: Tensor, problem_type: str) -> Tensor:
    """The next text of each, or the next of another label: int64 of shape (texts,)."""
    size = len(labels)
    following = (torch.arange(size).unsqueeze(1) + torch.arange(1, size)) % size
    if problem_type != "single_label_classification":
        return following[:, 0]
    label = (labels.argmax(1) if labels.dtype.is_floating_point else labels.reshape(-1)).cpu()
    # Of equal values argmax gives the first, also if no label is another.
    nearest = (label[following] != label.unsqueeze(1)).int().argmax(1, keepdim=True)
    return following.gather(1, nearest).squeeze(1)


def _walk(mixup: Mixup, inputs: dict[str, Tensor], labels: Tensor, partner: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (points, pairs, labels) at each of `t`, and the losses (points, pairs); float64, on the CPU."""
    logits, losses = [], []
    for weight in (1 - t).tolist():
        plan = MixupPlan(partner, torch.full(partner.shape, weight), "embeddings")
        with mixup.apply(plan, inputs):
            at = mixup.prepare().run(inputs)
        losses.append(mixup.loss(at, labels, plan, reduction="none").cpu().double())
        logits.append(at.cpu().double())
    return torch.stack(logits), torch.stack(losses)


def _noise(
    anatomy: Anatomy, inputs: dict[str, Tensor], strength: float, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """What adds the noise of one batch to its hidden states."""

    def disturb(states: Tensor) -> Tensor:
        texts = by_text(anatomy, states)
        kept = _kept(inputs, texts)
        square = (texts.float().square().mean(-1, keepdim=True) * kept).sum() / kept.sum()
        noise = torch.randn(texts.shape, generator=generator).to(texts.device) * kept
        return by_text(anatomy, texts + (strength * square.sqrt() * noise).to(texts.dtype))

    return disturb


def _kept(inputs: dict[str, Tensor], texts: Tensor) -> Tensor:
    """1 for tokens, 0 for padding: (texts, length, 1). Without a mask of this length every position is a token."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != texts.shape[:2]:
        mask = torch.ones(texts.shape[:2], device=texts.device)
    return mask.unsqueeze(-1).to(texts.device, torch.float32)
