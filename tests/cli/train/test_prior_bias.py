import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.classification import build_model, load_data
from hf_mixup.cli.train.prior_bias import label_priors, start_at_priors
from tests.toy_text import save_toy_model, write_csv

TEXTS = ["a film", "the film", "a plot", "the plot", "good", "bad", "fine", "poor"] * 5
# Of eight rows each: classes 2 to 6; a in 6, b in 2, c in 1; scores of mean 2.25.
CLASSES = ["x", "x", "y", "y", "y", "y", "y", "y"] * 5
SETS = ["a", "a", "a b", "a b", "a", "a", "c", ""] * 5
SCORES = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0] * 5


@pytest.fixture
def built(tmp_path):
    """The model of a run whose CSV file has these labels."""

    def built(labels, *options, model=None):
        path = write_csv(tmp_path / "train.csv", ["text", "label"], list(zip(TEXTS, labels, strict=True)))
        folders = ("--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out"))
        given = ["--model_name_or_path", model or save_toy_model(tmp_path / "toy"), "--train_file", path, *folders]
        model_args, data_args, args = parse([*given, *options])
        return build_model(model_args, load_data(model_args, data_args, args))[0]

    return built


@pytest.mark.parametrize(
    ("labels", "more", "mean"),
    [
        (CLASSES, (), [0.25, 0.75]),
        (SETS, ("--label_delimiter", " "), [0.75, 0.25, 0.125]),
        (SCORES, (), [2.25]),
    ],
)
def test_the_bias_of_a_new_head_is_what_the_labels_are_on_average(built, labels, more, mean):
    model = built(labels, "--prior_bias", *more)
    bias = model.classifier.bias.detach()
    predicted = {1: lambda bias: bias, 2: lambda bias: bias.softmax(-1), 3: torch.sigmoid}[len(mean)](bias)
    torch.testing.assert_close(predicted, torch.tensor(mean), atol=0.03, rtol=0)
    assert not built(labels, *more).classifier.bias.any()


def test_a_class_without_rows_has_a_finite_prior():
    assert label_priors(torch.tensor([0, 0, 2]), 3, "single_label_classification").isfinite().all()
    assert label_priors(torch.tensor([[1.0, 0.0]] * 4), 2, "multi_label_classification").isfinite().all()


def test_a_head_without_a_new_bias_is_refused(built, tmp_path):
    trained = tmp_path / "trained"
    built(CLASSES).save_pretrained(trained)
    save_toy_model(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (trained / name).write_bytes((tmp_path / "again" / name).read_bytes())
    with pytest.raises(ValueError, match=r"prior_bias=True.*BertForSeq.*found none.*has its head already"):
        built(CLASSES, "--prior_bias", model=str(trained))
    again = built(SETS, "--prior_bias", "--label_delimiter", " ", "--ignore_mismatched_sizes", model=str(trained))
    assert again.classifier.bias.shape == (3,) and again.classifier.bias.all()


def test_a_head_that_has_no_bias_is_refused():
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    model, rows = LlamaForSequenceClassification(config), Dataset.from_dict({"labels": [0, 1, 1]})
    with pytest.raises(ValueError, match=r"found none; new are score.weight"):
        start_at_priors(model, ["score.weight"], rows, "single_label_classification")
