"""The decision boundary: known paths, gradients against autograd, noise of a known size, and no trace in the model."""

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch.nn import functional as F

from hf_mixup import Mixup
from hf_mixup.evaluation.boundary import embedding_noise_logits, gradient_norm, paths
from tests.zoo import cached_toy_model, toy_batch, toy_model

FAMILIES = ("bert", "roberta", "llama", "t5", "bart", "xlnet", "albert")
LABELS = torch.tensor([0, 2, 2, 1])
PARTNERS = [1, 3, 3, 0]
MEASURES = {
    "paths": lambda model, batches: paths(model, batches, 3),
    "gradient_norm": gradient_norm,
    "noise": lambda model, batches: embedding_noise_logits(model, batches, 0.5, 0),
}


def batch_of(labels=LABELS, **kwargs):
    return toy_batch(**kwargs) | {"labels": labels}


def clean_logits(model, batch):
    with torch.no_grad():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits.double()


def linear_model(**changes):
    """BERT without blocks that do anything: the logits are on a line where the embeddings are."""
    model = toy_model("bert", **changes)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for output in (layer.attention.output, layer.output):
                output.dense.weight.zero_()
                output.dense.bias.zero_()
                output.LayerNorm = torch.nn.Identity()
        model.bert.pooler.activation = torch.nn.Identity()
        model.classifier.weight.mul_(4)
    return model


def on_lines(ends, partner, points):
    t = torch.linspace(0, 1, points, dtype=torch.double).view(-1, 1, 1)
    return torch.lerp(ends, ends[partner], t.expand(points, *ends.shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ends_of_the_path_are_the_clean_texts(family):
    model, batch = cached_toy_model(family), batch_of()
    found, logits = paths(model, [batch], 3), clean_logits(model, batch)
    ends = (slice(None), PARTNERS)
    confidence = [logits[rows].softmax(-1).amax(-1).mean().item() for rows in ends]
    loss = [F.cross_entropy(logits[rows], LABELS[rows]).item() for rows in ends]
    assert found["t"] == [0, 0.5, 1]
    assert [found["confidence"][0], found["confidence"][2]] == pytest.approx(confidence, rel=1e-4)
    assert [found["loss"][0], found["loss"][2]] == pytest.approx(loss, rel=1e-3)


def test_the_path_of_a_linear_model_is_known_everywhere():
    model, batch, points = linear_model(), batch_of(), 21
    found = paths(model, [batch], points)
    logits = on_lines(clean_logits(model, batch), PARTNERS, points)
    probabilities, one_hot = logits.softmax(-1), F.one_hot(LABELS, 3).double()
    confidence = probabilities.amax(-1)
    loss = -(on_lines(one_hot, PARTNERS, points) * logits.log_softmax(-1)).sum(-1)
    assert found["confidence"] == pytest.approx(confidence.mean(1).tolist(), rel=1e-4)
    assert found["loss"] == pytest.approx(loss.mean(1).tolist(), rel=1e-4)
    assert found["path_loss"] == pytest.approx(trapezoid(loss.mean(1), dx=1 / 20), rel=1e-4)
    below = (confidence < 0.75).double().mean(1)
    assert 0.05 < below.mean() < 0.95
    assert found["uncertain_width"] == pytest.approx(trapezoid(below, dx=1 / 20), abs=1e-9)
    variation = 0.5 * probabilities.diff(dim=0).abs().sum(-1)
    assert found["steepness"] == pytest.approx(20 * variation.amax(0).mean().item(), rel=1e-3)


def test_labels_of_a_multi_label_task_are_decisions_of_their_own():
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]])
    model, batch, points = linear_model(problem_type="multi_label_classification"), batch_of(labels), 11
    found = paths(model, [batch], points)
    partner = [1, 2, 3, 0]
    logits = on_lines(clean_logits(model, batch), partner, points)
    p, targets = logits.sigmoid(), on_lines(labels.double(), partner, points)
    confidence = torch.maximum(p, 1 - p)
    assert found["confidence"] == pytest.approx(confidence.mean((1, 2)).tolist(), rel=1e-4)
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2))
    assert found["loss"] == pytest.approx(loss.tolist(), rel=1e-4)
    below = (confidence < 0.75).double().mean((1, 2))
    assert found["uncertain_width"] == pytest.approx(trapezoid(below, dx=0.1), abs=1e-9)
    assert found["steepness"] == pytest.approx(10 * p.diff(dim=0).abs().amax(0).mean().item(), rel=1e-3)
    assert gradient_norm(model, [batch]) > 0


def test_regression_has_a_loss_but_no_confidence():
    labels = torch.tensor([0.5, 1.0, -2.0, 3.0])
    model, batch = linear_model(num_labels=1), batch_of(labels)
    found, partner = paths(model, [batch], 5), [1, 2, 3, 0]
    scores = on_lines(clean_logits(model, batch), partner, 5)
    loss = (scores - on_lines(labels.double().unsqueeze(1), partner, 5)).square().mean((1, 2))
    assert found["loss"] == pytest.approx(loss.tolist(), rel=1e-4)
    assert found["confidence"] is found["uncertain_width"] is found["steepness"] is None
    assert gradient_norm(model, [batch]) > 0


def test_a_batch_of_one_label_is_paired_in_order_and_class_probabilities_by_their_largest():
    model = cached_toy_model("bert")
    batch = batch_of(torch.ones(4, dtype=torch.long))
    logits = clean_logits(model, batch)
    expected = logits[[1, 2, 3, 0]].softmax(-1).amax(-1).mean().item()
    assert paths(model, [batch], 2)["confidence"][1] == pytest.approx(expected, rel=1e-4)
    model = toy_model("bert", problem_type="single_label_classification")
    soft = 0.9 * F.one_hot(LABELS, 3).float() + 0.1 / 3
    found, hard = paths(model, [batch_of(soft)], 3), paths(model, [batch_of()], 3)
    assert found["confidence"] == pytest.approx(hard["confidence"])


def test_means_are_over_the_pairs_of_all_batches_and_a_single_text_is_left_out():
    model = cached_toy_model("bert")
    first, second = batch_of(), batch_of(torch.tensor([1, 0]), lengths=(5, 9), seed=1)
    alone = batch_of(torch.tensor([1]), lengths=(6,), seed=2)
    one, other = paths(model, [first], 5), paths(model, [second], 5)
    both = paths(model, iter([first, alone, second]), 5)
    for name in ("confidence", "loss", "uncertain_width", "path_loss", "steepness"):
        expected = (4 * np.asarray(one[name]) + 2 * np.asarray(other[name])) / 6
        assert np.asarray(both[name]) == pytest.approx(expected, rel=1e-5), name
    with pytest.raises(ValueError, match="batches: no pair of texts"):
        paths(model, [alone])


@pytest.mark.parametrize("family", ["bert", "xlnet", "llama"])
def test_padding_does_not_change_the_path_or_the_gradient(family):
    model = cached_toy_model(family)
    # XLNet reads the last position.
    side, pad = ("left", (4, 0)) if family == "xlnet" else ("right", (0, 4))
    batch = batch_of(side=side)
    longer = {"input_ids": F.pad(batch["input_ids"], pad, value=1), "labels": LABELS}
    longer["attention_mask"] = F.pad(batch["attention_mask"], pad)
    found, expected = paths(model, [longer], 3), paths(model, [batch], 3)
    assert found["confidence"] == pytest.approx(expected["confidence"], rel=1e-3)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert gradient_norm(model, [longer]) == pytest.approx(gradient_norm(model, [batch]), rel=1e-3)


def test_the_gradient_norm_is_that_of_autograd():
    model, batches = toy_model("bert"), [batch_of(), batch_of(torch.tensor([1, 0]), lengths=(5, 9), seed=1)]
    expected = []
    for batch in batches:
        for row, label in enumerate(batch["labels"]):
            length = int(batch["attention_mask"][row].sum())
            embedded = model.bert.embeddings(batch["input_ids"][row : row + 1, :length]).detach().requires_grad_(True)
            logits = model.classifier(model.bert.pooler(model.bert.encoder(embedded).last_hidden_state))
            F.cross_entropy(logits, label.unsqueeze(0)).backward()
            expected.append(embedded.grad.norm().item())
    assert gradient_norm(model, batches) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_norm_is_the_slope_of_the_loss_by_finite_differences(family):
    model, step = toy_model(family).double(), 1e-5
    batch = batch_of(torch.tensor([2]), lengths=(3,))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    block, slopes = Mixup(model).prepare().calls[0].module, []
    for index in range(3 * 32):
        losses = []
        for sign in (step, -step):
            calls = []

            def move(module, args, kwargs, calls=calls, index=index, sign=sign):
                calls.append(1)
                if len(calls) > 1:
                    return None
                states = (args[0] if args else kwargs["hidden_states"]).clone()
                states.view(-1)[index] += sign
                return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

            handle = block.register_forward_pre_hook(move, with_kwargs=True)
            losses.append(F.cross_entropy(clean_logits(model, inputs), batch["labels"]).item())
            handle.remove()
        slopes.append((losses[0] - losses[1]) / (2 * step))
    # Losses are taken in float32, as in training.
    assert gradient_norm(model, [batch]) == pytest.approx(np.linalg.norm(slopes), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_of_strength_0_gives_the_clean_logits_and_more_noise_changes_them_more(family):
    model, batch = cached_toy_model(family), batch_of()
    clean = clean_logits(model, batch).float().numpy()
    logits = embedding_noise_logits(model, [batch, batch], 0, 0)
    assert logits.dtype == np.float32 and np.array_equal(logits, np.concatenate([clean, clean]))
    little, much = (np.abs(embedding_noise_logits(model, [batch], s, 0) - clean).mean() for s in (1e-3, 0.3))
    assert 0 < little < 0.1 * much


def test_noise_is_seeded_and_other_in_each_batch():
    model, batch = cached_toy_model("bert"), batch_of()
    first, again = embedding_noise_logits(model, [batch, batch], 0.3, 0).reshape(2, 4, 3)
    assert np.array_equal(embedding_noise_logits(model, [batch], 0.3, 0), first)
    assert np.abs(first - again).max() > 1e-3
    assert np.abs(first - embedding_noise_logits(model, [batch], 0.3, 1)).max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "llama", "xlnet", "albert"])
def test_noise_is_measured_in_root_mean_squares_of_the_tokens_and_spares_padding(family):
    model, batch, strength, entered = toy_model(family), toy_batch(), 0.5, []
    mask = batch["attention_mask"].bool()
    block = Mixup(model).prepare().calls[0].module
    forward = block.forward

    def write_down(*args, **kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        entered.append(states.transpose(0, 1) if family == "xlnet" else states)
        return forward(*args, **kwargs)

    def first_entered(run):
        # The model is run in other ways before, to find the first block: the texts are told by their shape.
        entered.clear()
        run()
        return next(states for states in entered if states.shape[:2] == mask.shape)

    block.forward = write_down
    clean = first_entered(lambda: clean_logits(model, batch))
    noise = first_entered(lambda: embedding_noise_logits(model, [batch], strength, 0)) - clean
    scale = strength * clean[mask].square().mean().sqrt().item()
    assert not noise[~mask].any()
    assert noise[mask].std().item() == pytest.approx(scale, rel=0.05)
    assert abs(noise[mask].mean().item()) < 0.1 * scale


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("family", ["bert", "t5", "llama", "xlnet"])
def test_the_model_is_left_as_it_was(family, measure):
    model, batch = toy_model(family).train(), batch_of()
    next(model.parameters()).requires_grad_(False)
    list(model.modules())[-1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, wanted = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    random_state = torch.get_rng_state()
    MEASURES[measure](model, [batch])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("measure", MEASURES)
def test_dropout_is_off_and_gradients_that_are_there_stay(measure):
    model, batch = toy_model("bert"), batch_of()
    expected = MEASURES[measure](model, [batch])
    model.train()
    kept = [torch.full_like(parameter, 3) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    found = MEASURES[measure](model, [batch])
    assert np.array_equal(found, expected) if measure == "noise" else found == expected
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), kept, strict=True))
    assert all(bool((gradient == 3).all()) for gradient in kept)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_model_is_left_as_it_was_after_an_error(measure):
    model, batch = toy_model("bert").train(), batch_of()
    batch["input_ids"] = batch["input_ids"] + 1000
    with pytest.raises(IndexError):
        MEASURES[measure](model, [batch])
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


TASKS = {
    "single_label_classification": LABELS,
    "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]]),
    "regression": torch.tensor([[0.5, 0, 1], [1.0, 0, 1], [-2.0, 1, 0], [3.0, 1, 0]]),
}


@pytest.mark.parametrize("problem_type", TASKS)
@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e25])
def test_a_model_that_diverged_has_no_boundary(problem_type, scale):
    model, batch = toy_model("bert", problem_type=problem_type), batch_of(TASKS[problem_type])
    sound = paths(model, [batch], 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    found = paths(model.train(), iter([batch]), 3)
    assert found.keys() == sound.keys() and found["t"] == sound["t"]
    for name in sound.keys() - {"t"}:
        assert np.shape(found[name]) == np.shape(sound[name])
        assert (found[name] is None) if sound[name] is None else np.isnan(found[name]).all(), name
    assert np.isnan(gradient_norm(model, iter([batch])))
    logits = embedding_noise_logits(model, iter([batch, batch]), 0.5, 0)
    assert logits.shape == (8, 3) and logits.dtype == np.float32 and not np.isfinite(logits).all()
    assert all(m.training for m in model.modules())


def test_one_text_without_finite_logits_takes_the_numbers_of_all():
    model, short, long = toy_model("bert"), batch_of(LABELS[:2], lengths=(5, 9), seed=1), batch_of()
    with torch.no_grad():
        # The probe is shorter, so the model is found fit to be mixed.
        model.bert.embeddings.position_embeddings.weight[15] = float("nan")
    assert np.isfinite(paths(model, [short], 3)["path_loss"]) and np.isfinite(gradient_norm(model, [short]))
    found = paths(model, [short, long], 3)
    assert all(np.isnan(found[name]).all() for name in found.keys() - {"t"})
    assert np.isnan(gradient_norm(model, [short, long]))


def test_a_model_that_cannot_be_mixed_is_still_refused():
    model = toy_model("bert", num_hidden_layers=0)
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match="no list of blocks"):
            measure(model, [batch_of()])


def test_what_does_not_fit_is_named():
    model, inputs = cached_toy_model("bert"), toy_batch()
    with pytest.raises(ValueError, match="points=1: a line needs both of its ends"):
        paths(model, [batch_of()], 1)
    for strength in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"strength={strength}: expected a number of 0 or more"):
            embedding_noise_logits(model, [inputs], strength, 0)
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match="batches: no"):
            measure(model, [])
    for measure in (paths, gradient_norm):
        with pytest.raises(ValueError, match="labels: none"):
            measure(model, [inputs])
