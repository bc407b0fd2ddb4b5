"""What is said of the labels of a data set before the first step."""

import logging

import pytest
import torch

from hf_mixup.training import label_columns
from tests.zoo import toy_model

SOFT, HARD, SEVERAL = torch.tensor([[0.2, 0.7, 0.1], [1.0, 0, 0]]), torch.eye(3), torch.tensor([[0.5, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("labels", "problem_type", "is_said"),
    [
        (SOFT, None, True),
        (SOFT, "single_label_classification", False),
        (SOFT, "multi_label_classification", False),
        (HARD, None, False),
        (SEVERAL, None, False),
        (SOFT[:, 0], None, False),
    ],
)
def test_probabilities_that_are_read_as_several_labels_are_told(labels, problem_type, is_said, caplog):
    logging.getLogger(label_columns.__name__).addHandler(caplog.handler)
    config = toy_model("bert", problem_type=problem_type).config
    label_columns.warn_of_probabilities(labels, config)
    logging.getLogger(label_columns.__name__).removeHandler(caplog.handler)
    assert ("problem_type = 'single_label_classification'" in caplog.text) == is_said
