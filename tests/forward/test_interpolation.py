"""The formulas, against loops over positions."""

import math

import pytest
import torch

from hf_mixup.forward import interpolation
from hf_mixup.forward.anatomy.anatomy import Argument
from hf_mixup.forward.anatomy.masks import mix_bias, mix_keep, mix_rows, mix_truth, position_weights

PARTNER = torch.tensor([1, 2, 0])
LAM = torch.tensor([0.3, 1.0, 0.0])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()


def interpolated(i, *position):
    own, other = float(MASK[(i, *position)]), float(MASK[(PARTNER[i], *position)])
    return float(LAM[i]) * own + (1 - float(LAM[i])) * other


def test_weights_ignore_padding():
    weights = position_weights(LAM, PARTNER, MASK, 4, None)
    for i in range(3):
        for t in range(4):
            own, other = MASK[i, t], MASK[PARTNER[i], t]
            expected = float(LAM[i]) if own == other else float(own)
            assert weights[i, t].item() == pytest.approx(expected)


@pytest.mark.parametrize(("read", "plain_rows"), [(0, []), (1, [0, 1]), (-1, [0, 1, 2])])
def test_pairs_read_at_a_padding_position_are_averaged_everywhere(read, plain_rows):
    weights = position_weights(LAM, PARTNER, MASK, 4, read)
    ordinary = position_weights(LAM, PARTNER, MASK, 4, None)
    for i in range(3):
        expected = LAM[i].expand(4) if i in plain_rows else ordinary[i]
        torch.testing.assert_close(weights[i], expected)


@pytest.mark.parametrize("time_major", [False, True])
def test_rows_are_mixed_along_the_batch(time_major):
    values, weights = torch.randn(3, 4, 5), torch.rand(3, 4)
    expected = weights.unsqueeze(-1) * values + (1 - weights).unsqueeze(-1) * values[PARTNER]
    if time_major:
        mixed = mix_rows(values.transpose(0, 1), PARTNER, weights, batch_dim=1).transpose(0, 1)
    else:
        mixed = mix_rows(values, PARTNER, weights)
    torch.testing.assert_close(mixed, expected)


def test_lambda_0_and_1_are_exact_copies_in_half_precision():
    values = torch.randn(3, 4, 5, dtype=torch.bfloat16) * 1000
    mixed = mix_rows(values, PARTNER, LAM)
    assert torch.equal(mixed[1], values[1]) and torch.equal(mixed[2], values[PARTNER[2]])
    assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize("expanded", [False, True])
def test_masks_become_the_log_of_the_interpolated_mask(expanded):
    keep = MASK.view(3, 1, 1, 4).expand(3, 1, 4, 4)
    keep = keep if expanded else keep.contiguous()
    lowest = torch.finfo(torch.float32).min
    bias = torch.zeros(3, 1, 4, 4).masked_fill(~keep, lowest)
    bias = bias[:, :, :1].expand(3, 1, 4, 4) if expanded else bias
    for name, mixed in {
        "bias": mix_bias(bias, PARTNER, LAM),
        "keep": mix_keep(keep, PARTNER, LAM, torch.float32),
        "mask": mix_truth(1 - keep.float(), PARTNER, LAM, Argument("mask", 0, keeps=False)) * -1e30,
        "compared": torch.zeros(()) + mix_truth(bias, PARTNER, LAM, Argument("bias", 0, compared=True)) * -1e30,
    }.items():
        assert mixed.shape == (3, 1, 4, 4), name
        for i in range(3):
            for t in range(4):
                weight = interpolated(i, t)
                expected = math.log(weight) if weight else -math.inf
                value = mixed[i, 0, 0, t].item()
                assert value == pytest.approx(expected, abs=1e-5) or (weight == 0 and value < -1e20), (name, i, t)


def test_the_bias_of_a_relative_position_is_kept():
    bias = torch.randn(1, 2, 4, 4).expand(3, 2, 4, 4).clone()
    torch.testing.assert_close(mix_bias(bias, PARTNER, torch.tensor([0.3, 0.5, 0.9])), bias)


def test_a_soft_mask_fills_in_the_interpolated_bias():
    keep = (MASK.unsqueeze(2) & MASK.unsqueeze(1)).unsqueeze(1).long()
    scores = torch.randn(3, 2, 4, 4)
    mask = mix_truth(keep, PARTNER, LAM, Argument("mask", 0))
    probabilities = scores.masked_fill(~mask.bool(), torch.finfo(torch.float32).min).softmax(-1)
    assert type(probabilities) is torch.Tensor
    for i in range(3):
        for q in range(4):
            own, other = (keep[k, 0, q].float() for k in (i, PARTNER[i]))
            weights = LAM[i] * own + (1 - LAM[i]) * other
            if not own.any() and not other.any():
                expected = torch.full((2, 4), 0.25)
            elif weights.any():
                expected = scores[i, :, q].exp() * weights / (scores[i, :, q].exp() * weights).sum(-1, keepdim=True)
            else:
                continue
            torch.testing.assert_close(probabilities[i, :, q], expected, rtol=1e-4, atol=1e-6)


def test_the_last_token_is_the_last_that_is_not_padding():
    ids = torch.tensor([[5, 6, 1, 1], [1, 1, 7, 8], [5, 1, 6, 1]])
    assert interpolation.last_position(ids != 1).tolist() == [1, 3, 2]
    assert interpolation.last_position(ids == 6).tolist() == [1, 0, 2]


def test_means_are_interpolated():
    hidden = torch.randn(3, 4, 5)
    read = interpolation.read_mean(hidden, MASK, PARTNER, LAM)
    for i in range(3):
        means = [hidden[i][MASK[k]].mean(0) for k in (i, PARTNER[i])]
        torch.testing.assert_close(read[i], LAM[i] * means[0] + (1 - LAM[i]) * means[1])
