"""Boxes of pixels: which give way, and the lambda that follows."""

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mixup.plan.boxes import plan_boxes, swap_boxes
from hf_mixup.plan.examples import Examples
from hf_mixup.plan.planner import Planner
from tests.plain_config import plain_config


def box_by_hand(lam, center, height, width):
    """The edges of CutMix as its authors draw them: even sides around a pixel, clipped."""
    ratio, edges = np.sqrt(1 - lam), []
    for size, middle in zip((height, width), center, strict=True):
        side = int(size * ratio + 2e-4)
        edges += [max(middle - side // 2, 0), min(middle + side // 2, size)]
    return edges


@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12), (224, 160), (1, 1)])
def test_a_box_is_that_of_the_paper_and_lambda_is_the_share_of_pixels_that_stay(height, width):
    generator = np.random.default_rng(0)
    lam = torch.cat([torch.tensor([0.0, 1.0]), torch.from_numpy(generator.random(300)).float()])
    uniform = torch.from_numpy(generator.random((2, len(lam))))
    box, stays = plan_boxes(lam, height, width, uniform)
    images, partner = torch.zeros(len(lam), 1, height, width), torch.arange(len(lam)).roll(1)
    images[::2] = 1
    mixed = swap_boxes(images, partner, box)
    for row, edges in enumerate(box.tolist()):
        center = [int(place * size) for place, size in zip(uniform[:, row].tolist(), (height, width), strict=True)]
        assert edges == box_by_hand(lam[row].item(), center, height, width)
        assert 0 <= edges[0] <= edges[1] <= height and 0 <= edges[2] <= edges[3] <= width
        own = mixed[row] == images[row, 0, 0, 0]
        assert stays[row].item() == pytest.approx(own.double().mean().item(), abs=1e-6)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_tenth_is_a_tenth_also_in_single_precision(tenth):
    box, _ = plan_boxes(torch.tensor([1 - (tenth / 10) ** 2]), 20, 40, torch.full((2, 1), 0.5))
    assert box.tolist() == [[10 - tenth, 10 + tenth, 20 - 2 * tenth, 20 + 2 * tenth]]


def test_lambda_1_takes_nothing_and_a_whole_box_takes_all():
    lam, middle = torch.tensor([1.0, 0.0]), torch.full((2, 2), 0.5)
    box, stays = plan_boxes(lam, 8, 6, middle)
    assert stays.tolist() == [1.0, 0.0] and box[1].tolist() == [0, 8, 0, 6]
    images = torch.randn(2, 3, 8, 6)
    mixed = swap_boxes(images, torch.tensor([1, 0]), box)
    assert torch.equal(mixed, images[[0, 0]])


def test_pixels_come_from_the_same_place_of_the_partner_in_every_channel_and_frame():
    clips, partner = torch.randn(3, 4, 2, 9, 7), torch.tensor([2, 0, 1])
    box = torch.tensor([[1, 4, 0, 3], [0, 0, 2, 5], [5, 9, 3, 7]])
    expected = clips.clone()
    for row, (top, bottom, left, right) in enumerate(box.tolist()):
        expected[row, :, :, top:bottom, left:right] = clips[partner[row], :, :, top:bottom, left:right]
    assert torch.equal(swap_boxes(clips, partner, box), expected)


def planner_of(**fields):
    return Planner(plain_config(site="input", interpolation="box", **fields))


def test_every_image_has_a_box_of_its_own_centered_at_any_pixel():
    planner, images = planner_of(lam=0.99), {"pixel_values": torch.zeros(6, 3, 20, 30)}
    boxes = torch.cat([planner.draw(Examples(6, inputs=images)).box for _ in range(1000)])
    # The sides are a tenth: one pixel each way of the center in the rows, and in the columns.
    for first, size in ((0, 20), (2, 30)):
        centers = boxes[:, first + 1] - 1
        assert stats.chisquare(np.bincount(centers, minlength=size)).pvalue > 1e-3
    assert len({tuple(edges) for edges in boxes[:6].tolist()}) > 3


def test_warm_up_shrinks_the_boxes():
    planner, images = planner_of(lam=0.0, warmup_batches=10), {"pixel_values": torch.zeros(50, 3, 64, 64)}
    shares = [planner.draw(Examples(50, inputs=images)).lam.mean() for _ in range(10)]
    assert shares[0] > 0.9 and shares[0] > shares[4] > shares[9]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.ones(4, 9)}, "pixel_values: .* needs images; this batch has only input_ids"),
        ({"pixel_values": torch.ones(4, 9, 9)}, r"pixel_values: shape \(4, 9, 9\).*\(batch, channels, height, width\)"),
    ],
)
def test_batches_without_images_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        planner_of().draw(Examples(4, inputs=inputs))
