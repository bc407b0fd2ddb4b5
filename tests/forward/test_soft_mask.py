"""Whatever a kernel does with a mask of zeros and ones, it does with the interpolated one."""

import pytest
import torch
from torch.nn import functional

from hf_mixup.forward.anatomy.soft_mask import soft_mask

WEIGHTS = torch.tensor([1.0, 0.3, 0.0])
SCORES = torch.tensor([[0.2, -0.4, 0.9], [0.1, 0.5, -0.3]])
LOWEST = torch.finfo(torch.float32).min
EXPECTED = SCORES.exp() * WEIGHTS / (SCORES.exp() * WEIGHTS).sum(-1, keepdim=True)
TO_SCORES = {
    "masked_fill": lambda s, keep: s.masked_fill(~keep.bool(), LOWEST),
    "masked_fill of equality": lambda s, keep: s.masked_fill(keep == 0, -1e9),
    "masked_fill in place": lambda s, keep: s.clone().masked_fill_((keep == 0).view(1, 3).expand_as(s), LOWEST),
    "torch.masked_fill": lambda s, keep: torch.masked_fill(s, keep.logical_not(), float("-inf")),
    "less": lambda s, keep: s.masked_fill(keep < 1, LOWEST),
    "at most": lambda s, keep: s.masked_fill(keep <= 0, LOWEST),
    "subtract": lambda s, keep: s - 1e9 * (1 - keep.float()),
    "add": lambda s, keep: s + (1.0 - keep) * -1e4,
    "lowest": lambda s, keep: s + (1.0 - keep[None, :].to(s.dtype)) * LOWEST,
    "drop": lambda s, keep: s - torch.einsum("k->k", ~keep) * 1e30,
    "where": lambda s, keep: torch.where(keep.bool(), s, LOWEST),
    "where the other way": lambda s, keep: torch.where(keep == 0, torch.tensor(-1e9), s),
    "bias first": lambda s, keep: s + torch.where(keep > 0, 0.0 * s, LOWEST),
    "filled copy": lambda s, keep: s + (keep == 0).type_as(s).masked_fill(keep == 0, LOWEST),
    "minimum": lambda s, keep: s + (1 - torch.minimum(keep, torch.ones(3))) * -1e4,
    "product of masks": lambda s, keep: s.masked_fill((keep * torch.ones(3, dtype=torch.long)) == 0, LOWEST),
    "joined": lambda s, keep: s.masked_fill(torch.cat([keep[:1], keep[1:]]) == 0, LOWEST),
}


@pytest.mark.parametrize("how", TO_SCORES)
def test_scores_gain_the_logarithm_of_the_weight(how):
    probabilities = TO_SCORES[how](SCORES, soft_mask(WEIGHTS)).softmax(-1)
    assert type(probabilities) is torch.Tensor
    torch.testing.assert_close(probabilities, EXPECTED)


def test_the_same_is_said_of_a_hard_mask():
    for how, kernel in TO_SCORES.items():
        hard = torch.tensor([1.0, 1.0, 0.0])
        keep = hard.long() if "drop" not in how else hard.bool()
        torch.testing.assert_close(kernel(SCORES, soft_mask(hard)).softmax(-1), kernel(SCORES, keep).softmax(-1))


def test_everything_else_is_multiplied_by_the_weight():
    mask, states = soft_mask(WEIGHTS), torch.randn(3, 4)
    torch.testing.assert_close(states * mask[:, None], states * WEIGHTS[:, None])
    torch.testing.assert_close(mask.unsqueeze(-1).to(states.dtype) * states, states * WEIGHTS[:, None])
    torch.testing.assert_close(states.masked_fill(~mask.unsqueeze(1), 0.0), states * WEIGHTS[:, None])
    torch.testing.assert_close(
        torch.where(mask.unsqueeze(1), states, 2.0), torch.lerp(torch.tensor(2.0), states, WEIGHTS[:, None])
    )
    written = states.clone()
    written *= mask.unsqueeze(-1)
    torch.testing.assert_close(written, states * WEIGHTS[:, None])
    torch.testing.assert_close(mask.sum(), torch.tensor(1.3))


def test_sdpa_takes_it_as_a_bias():
    query, key, value = (torch.randn(1, 1, 3, 4) for _ in range(3))
    mask = soft_mask(WEIGHTS.expand(1, 1, 3, 3))
    read = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    weights = (query @ key.transpose(-1, -2) / 2).exp() * WEIGHTS
    torch.testing.assert_close(read, weights / weights.sum(-1, keepdim=True) @ value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_bias_is_of_the_type_of_the_scores(dtype):
    scores = SCORES.to(dtype)
    assert scores.masked_fill(~soft_mask(WEIGHTS), torch.finfo(dtype).min).dtype == dtype
    assert (scores + (1 - soft_mask(WEIGHTS).to(dtype)) * -1e4).dtype == dtype


@pytest.mark.parametrize("kernel", [torch.logical_and, torch.matmul, torch.add])
def test_what_is_not_known_is_refused(kernel):
    with pytest.raises(ValueError, match=f"{kernel.__name__}: not known what it makes of a mask between 0 and 1"):
        kernel(soft_mask(WEIGHTS), torch.ones(3))
