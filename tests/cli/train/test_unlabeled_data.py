"""Texts without labels on the command line: files, splits, and what becomes of labels that they have."""

import json
import re

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_mixup.cli.main import main
from hf_mixup.cli.mixup_help import mixup_help
from hf_mixup.cli.train import data as data_module
from hf_mixup.cli.train.arguments import parse
from hf_mixup.cli.train.classification import finish, prepare
from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.run_fields import DataArguments
from hf_mixup.config.recipes import resolve_config
from tests.toy_text import reviews, save_toy_model, write_csv, write_reviews

TEXTS = [text for text, _ in reviews(60, seed=3)]


@pytest.fixture
def load(tmp_path):
    def load(**options):
        train = {} if "dataset_name" in options else {"train_file": write_reviews(tmp_path / "train.csv", 40)}
        return load_splits(DataArguments(**train | options), cache_dir=str(tmp_path / "cache"))

    return load


@pytest.fixture
def words(tmp_path):
    """The command line of a run of 8 updates; fields that are `None` are left out."""

    def words(**changes):
        given = {
            "model_name_or_path": save_toy_model(tmp_path / "toy"),
            "train_file": write_reviews(tmp_path / "train.csv", 40),
            "validation_file": write_reviews(tmp_path / "dev.csv", 20, seed=1),
            "unlabeled_file": write_csv(tmp_path / "more.csv", ["text"], [[text] for text in TEXTS]),
            "cache_dir": str(tmp_path / "cache"),
            "output_dir": str(tmp_path / "out"),
            "max_steps": 8,
            "logging_steps": 4,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        } | changes
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]

    return words


def test_a_file_needs_no_label_column_and_loses_rows_without_text(load, tmp_path, caplog):
    rows = [json.dumps({"text": text, "stars": number}) for number, text in enumerate(["a film", "", "the plot"])]
    (tmp_path / "more.jsonl").write_text("\n".join(rows))
    data = load(unlabeled_file=str(tmp_path / "more.jsonl"))
    assert list(data.splits["unlabeled"]["text"]) == ["a film", "the plot"]
    assert list(data.splits["unlabeled"]["labels"]) == [-100, -100]
    assert data.dropped["unlabeled"] == [2]
    assert "unlabeled: dropped 1 of 3 rows with a missing or empty text: row 2" in caplog.text
    assert load(unlabeled_file=str(tmp_path / "more.jsonl"), max_unlabeled_samples=1).splits["unlabeled"].num_rows == 1


def test_labels_are_kept_for_comparison_and_unknown_ones_are_none(load, tmp_path):
    cells = ["good", " bad ", "", "great", "bad"]
    file = write_csv(tmp_path / "more.tsv", ["text", "label"], [("a film", cell) for cell in cells], delimiter="\t")
    assert list(load(unlabeled_file=file).splits["unlabeled"]["labels"]) == [1, 0, -100, -100, 0]


def test_a_label_column_of_several_types_is_left_out_with_a_warning(load, tmp_path, caplog):
    rows = [{"text": "a film", "label": "good"}, {"text": "a plot", "label": 3}]
    (tmp_path / "more.json").write_text(json.dumps(rows))
    assert list(load(unlabeled_file=str(tmp_path / "more.json")).splits["unlabeled"]["labels"]) == [-100, -100]
    assert "column 'label' holds text in row 1, a number in row 2; it is left out" in caplog.text


def test_a_split_of_a_dataset_whose_labels_are_unknown(load, monkeypatch):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})

    def split(labels):
        return Dataset.from_dict({"text": TEXTS[: len(labels)], "label": labels}, features=features)

    splits = DatasetDict(train=split([0, 1] * 10), test=split([0, 1] * 4), unsupervised=split([-1] * 30))
    monkeypatch.setattr(data_module, "load_dataset", lambda *args, **options: splits)
    data = load(dataset_name="imdb", unlabeled_split_name="unsupervised")
    assert data.splits["unlabeled"].num_rows == 30 and set(data.splits["unlabeled"]["labels"]) == {-100}
    assert "unlabeled" not in load(dataset_name="imdb").splits
    with pytest.raises(ValueError, match="unlabeled_split_name='unsupervized': .* Did you mean 'unsupervised'"):
        load(dataset_name="imdb", unlabeled_split_name="unsupervized")


def test_class_probabilities_beside_names_of_classes(load, tmp_path):
    rows = [{"text": text, "label": [0.8, 0.2] if n % 2 else [0.1, 0.9]} for n, text in enumerate(TEXTS)]
    (tmp_path / "soft.json").write_text(json.dumps(rows))
    file = write_csv(tmp_path / "more.csv", ["text", "label"], [("a film", "LABEL_1"), ("a plot", "?")])
    data = load(train_file=str(tmp_path / "soft.json"), unlabeled_file=file)
    assert list(data.splits["unlabeled"]["labels"]) == [1, -100]


def guessed(folder, cells):
    """A file of texts with class probabilities."""
    rows = [{"text": text, "label": cell} for text, cell in zip(TEXTS, cells, strict=False)]
    (folder / "guessed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "guessed.jsonl")


def test_class_probabilities_of_texts_without_labels(load, tmp_path, caplog):
    cells = [[0.25, 0.75], [1.0, 0.0]]
    assert list(load(unlabeled_file=guessed(tmp_path, cells)).splits["unlabeled"]["labels"]) == cells
    assert "the probabilities of a row are those of 'bad', 'good', in this order" in caplog.text
    assert list(load(unlabeled_file=guessed(tmp_path, [[0, 1], [1, 0]])).splits["unlabeled"]["labels"]) == [
        [0, 1],
        [1, 0],
    ]
    for cell, fault in (([0.5, 0.25, 0.25], "3 values"), ([0.5, 0.4], "their sum is 0.9"), (None, "lack a label")):
        # Nobody may want to learn them.
        data = load(unlabeled_file=guessed(tmp_path, [*cells, cell]))
        assert list(data.splits["unlabeled"]["labels"]) == [-100] * 3
        assert re.search(f"label_column_name='label': .*unlabeled .*{fault}.* No probabilities are read", caplog.text)


def test_lists_of_class_names_are_no_probabilities(load, tmp_path, caplog):
    data = load(unlabeled_file=guessed(tmp_path, [["good"], ["bad"], ["bad", "good"]]))
    assert list(data.splits["unlabeled"]["labels"]) == [1, 0, -100] and "probabilities" not in caplog.text


def refusals(folder):
    """What cannot work, and the end of the line that says so."""
    plain = write_csv(folder / "more.csv", ["text"], [["a film"]])
    other = write_csv(folder / "other.csv", ["txt"], [["a film"]])
    scores = write_csv(folder / "scores.csv", ["text", "label"], [(text, n / 7) for n, text in enumerate(TEXTS)])
    several = write_csv(folder / "several.csv", ["text", "label"], [(text, "a|b") for text in TEXTS])
    return [
        ({"unlabeled_file": other}, "text_column_names='text': no such column in the unlabeled data. .*'txt'"),
        ({"unlabeled_file": "mre.csv"}, "unlabeled_file='mre.csv': no such file"),
        ({"unlabeled_file": plain, "train_file": scores}, "unlabeled_file='.*more.csv': needs classes to guess"),
        (
            {"unlabeled_file": plain, "train_file": several, "label_delimiter": "|"},
            r"unlabeled_file='.*more.csv': needs one label per text \(single_label_classification\)",
        ),
        ({"unlabeled_split_name": "x"}, "unlabeled_split_name='x': goes with dataset_name"),
        ({"max_unlabeled_samples": 3}, "max_unlabeled_samples=3: needs unlabeled_file or unlabeled_split_name"),
        ({"unlabeled_file": plain, "max_unlabeled_samples": 0}, "max_unlabeled_samples=0: expected a whole number"),
        ({"unlabeled_file": plain, "unlabeled_split_name": "x"}, "unlabeled_file, unlabeled_split_name: give one"),
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_cannot_work_is_refused(load, tmp_path, number):
    given, message = refusals(tmp_path)[number]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(**given)


# ---- The mixup field ----


def test_fields_of_unlabeled_lie_on_top_of_those_of_the_mixup(words, tmp_path):
    inside = {"site": "pooled", "unlabeled": {"ratio": 3.0, "start": 0.1}}
    (tmp_path / "mine.yaml").write_text(json.dumps(inside))
    given = words(mixup=tmp_path / "mine.yaml")
    found = resolve_config(
        parse([*given, "--mixup.unlabeled.ratio", "2", "--mixup.unlabeled", "{weight: 0.5}"])[0].mixup
    )
    assert (found.site, found.unlabeled.ratio, found.unlabeled.start, found.unlabeled.weight) == ("pooled", 2, 0.1, 0.5)
    changed = {"recipe": str(tmp_path / "mine.yaml"), "unlabeled": {"mask": 0.1}}
    assert (resolve_config(changed).unlabeled.ratio, resolve_config(changed).unlabeled.mask) == (3, 0.1)
    assert resolve_config(changed | {"unlabeled": None}).unlabeled is None
    (tmp_path / "run.yaml").write_text("mixup: {recipe: tmix, unlabeled: {ratio: 2}}\n")
    assert resolve_config(parse([str(tmp_path / "run.yaml"), *words()])[0].mixup).unlabeled.ratio == 2


def test_the_help_lists_the_fields():
    found = re.sub(r"\s+", " ", mixup_help())
    assert "how many rows and how much they count: ratio Unlabelled rows per labelled row" in found
    assert "decay The largest decay of that average" in found and "Only with guesses average. Default: 0.99." in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled_file": None, "mixup.unlabeled.ratio": 2}, "mixup.unlabeled: needs texts without labels; give unl"),
        ({"mixup.unlabeled.rato": 2}, "mixup.unlabeled: unknown field 'rato'. Did you mean 'ratio'"),
        ({"mixup.unlabeled.ratio": 0}, "mixup.unlabeled.ratio=0: expected"),
        (
            {"mixup.unlabeled.guesses": "given"},
            "mixup.unlabeled.guesses='given': needs an unlabeled_file .* list of prob",
        ),
        ({"mixup.clean_weight": 0.5}, "mixup.clean_weight=0.5: .*not with unlabeled_dataset"),
    ],
)
def test_one_line_says_what_is_wrong_with_the_mixup(words, capsys, changes, message):
    assert main(["train", *words(**{"mixup": "tmix"} | changes)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {message}", line)


def test_a_run_says_what_it_does_and_trains_without_these_rows_as_a_baseline(words, tmp_path, capsys):
    rows = [(text, "good" if good else "") for text, good in reviews(60, seed=3)]
    changes = {"unlabeled_file": write_csv(tmp_path / "half.csv", ["text", "label"], rows), "mixup": "tmix"}
    changes |= {"mixup.unlabeled.ratio": 2, "mixup.unlabeled.start": 0, "baseline": True}
    assert main(["train", *words(**changes)]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "40 train, 20 validation rows, 60 without labels; label column" in shown
    assert "Guesses 2 per labelled row, of the classes of texts without labels, by the moving average of the" in shown
    assert "weights, from the start; 30 have a label, which is compared with the guess and not learned" in shown
    assert "Mixup tmix - with" in shown and re.search(r"guesses right \d\.\d\d", shown) and "baseline: update" in shown
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rows"]["unlabeled"] == 60 and results["mixup"]["unlabeled"]["ratio"] == 2
    assert main(["train", *words(unlabeled_file=None, mixup="none", output_dir=tmp_path / "plain")]) == 0
    plain = json.loads((tmp_path / "plain/results.json").read_text())
    assert results["baseline"]["metrics"]["nll"] == plain["metrics"]["nll"] != results["metrics"]["nll"]


def test_guesses_that_are_given_are_learned_from_the_start(words, tmp_path, capsys):
    file = guessed(tmp_path, [[0.9, 0.1], [0.2, 0.8]] * 30)
    assert main(["train", *words(**{"unlabeled_file": file, "mixup.unlabeled.guesses": "given"})]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "of the classes of texts without labels, by whoever gave their probabilities, from the start " in shown
    assert json.loads((tmp_path / "out/results.json").read_text())["mixup"]["unlabeled"]["guesses"] == "given"


def test_guesses_without_mixing_are_those_of_a_strength_of_0(words, tmp_path):
    found = []
    for given in ({"mixup": "none"}, {"mixup": "fixed", "mixup.strength": 0}):
        run = prepare(*parse(words(output_dir=tmp_path / given["mixup"], **given)))
        found.append(finish(run)["metrics"]["nll"])
        assert any("unlabeled_use" in entry for entry in run.trainer.state.log_history)
    assert found[0] == found[1]


def test_the_default_beside_such_rows_is_named(words, capsys):
    assert main(["train", *words(max_steps=2)]) == 0
    assert "Mixup few_labels - with" in re.sub(r"\s+", " ", capsys.readouterr().out)
