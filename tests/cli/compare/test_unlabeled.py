"""Rows without labels, few development rows and the same time in a comparison."""

import json

import pytest
import yaml

from hf_mixup.cli.compare.cell import check_runs, run_cell, train_variant
from hf_mixup.cli.compare.compare import check_recipes, widened
from hf_mixup.cli.compare.moments import BestWeights
from hf_mixup.cli.compare.rows import read_data, training_data
from hf_mixup.cli.compare.runs import Cell
from hf_mixup.cli.train.arguments import parse_fields
from hf_mixup.config.unlabeled_config import UnlabeledConfig
from tests.toy_text import reviews, write_csv

GUESSING = {"mixup": "tmix", "mixup.unlabeled": {"start": 0.2}}
METHODS = {"none": None, "guessing": GUESSING}


def texts(rows):
    return list(zip(rows["text"], rows["labels"], strict=True))


def numbered(folder, name, count=100):
    """A file of texts each of which is there once."""
    rows = [(f"the {name} number {number}", ("bad", "good")[number % 2]) for number in range(count)]
    return write_csv(folder / f"{name}.csv", ["text", "label"], rows)


def data_of(comparison):
    return read_data(*parse_fields(comparison.run | {"output_dir": comparison.output_dir}))


def test_other_training_rows_lose_their_labels_the_same_in_every_method(toy, tmp_path):
    data = data_of(toy(train_file=numbered(tmp_path, "film")))
    cells = {(method, seed): Cell(method, 12, 0.0, seed) for method in METHODS for seed in (0, 1)}
    drawn = {key: training_data(data, cell, True, 30)[0].splits for key, cell in cells.items()}
    for splits in drawn.values():
        assert splits["unlabeled"].num_rows == 30
        assert not set(splits["unlabeled"]["text"]) & set(splits["train"]["text"])
        assert set(texts(splits["unlabeled"])) < set(texts(data.splits["train"]))
    assert texts(drawn["none", 0]["unlabeled"]) == texts(drawn["guessing", 0]["unlabeled"])
    assert texts(drawn["none", 0]["unlabeled"]) != texts(drawn["none", 1]["unlabeled"])
    plain = training_data(data, cells["none", 0])[0]
    assert texts(plain.splits["train"]) == texts(drawn["none", 0]["train"]) and "unlabeled" not in plain.splits
    with pytest.raises(ValueError, match="unlabeled=90: beside train_sizes=12 there are 76 training rows, so at most"):
        training_data(data, cells["none", 0], True, 90)


def test_development_rows_are_as_few_as_training_rows(toy):
    data = data_of(toy())
    few = [training_data(data, Cell("none", 3, 0.0, seed), small_validation=True)[0] for seed in (0, 0, 1)]
    assert [list(one.splits["validation"]["labels"]).count(1) for one in few] == [3, 3, 3]
    assert len(few[0].splits["validation"]["labels"]) == 6
    assert (
        texts(few[0].splits["validation"]) == texts(few[1].splits["validation"]) != texts(few[2].splits["validation"])
    )
    # There are 20 of each class.
    assert training_data(data, Cell("none", 30, 0.0, 0), small_validation=True)[0].splits["validation"].num_rows == 40
    with pytest.raises(ValueError, match="small_validation=True: train_sizes=1 leaves 1 row to measure on"):
        training_data(data, Cell("none", 1, 0.0, 0), balanced=False, small_validation=True)


def test_only_a_method_with_the_field_uses_them_and_says_what_became_of_them(toy, tmp_path):
    both = toy(methods=METHODS, unlabeled=20, measures=[])
    found = {name: run_cell(both, Cell(name, 12, 0.0, 0), tmp_path / name) for name in METHODS}
    curve = found["guessing"]["curves"]["unlabeled"]
    assert set(curve) == {"step", "use", "drift", "disagreement", "accuracy"} and curve["step"][-1] == 10
    assert curve["step"][0] > 2 and found["guessing"]["metrics"]["unlabeled_accuracy"] == curve["accuracy"][-1]
    assert found["guessing"]["mixup"]["unlabeled"]["start"] == 0.2
    assert found["guessing"]["train"]["train_seconds"] > 0
    assert "unlabeled" not in found["none"]["curves"] and "unlabeled_accuracy" not in found["none"]["metrics"]


def test_rows_of_a_file_and_none_that_are_held_out(toy, tmp_path, caplog):
    rows = [[text] for text, _ in [*reviews(8, seed=2), *reviews(30, seed=9)]]
    held = [(text, ("bad", "good")[good]) for text, good in reviews(8, seed=2)]
    given = {"unlabeled_file": write_csv(tmp_path / "more.csv", ["text"], rows)}
    given["test_file"] = write_csv(tmp_path / "held.csv", ["text", "label"], held)
    comparison = toy(methods=METHODS, measures=[], max_steps=5, max_unlabeled_samples=10, **given)
    unlabeled = check_runs(comparison).splits["unlabeled"]
    assert unlabeled.num_rows == 10 and not set(unlabeled["text"]) & {text for text, _ in reviews(8, seed=2)}
    assert "unlabeled rows are left out: their texts are held out as well" in caplog.text
    found = run_cell(comparison, Cell("guessing", 12, 0.0, 0), tmp_path / "run")
    assert {"use", "drift"} < set(found["curves"]["unlabeled"]) and "unlabeled_accuracy" not in found["metrics"]


def test_guesses_of_a_file_are_learned_beside_those_of_the_model(toy, tmp_path):
    rows = [{"text": text, "label": [0.9, 0.1] if good else [0.1, 0.9]} for text, good in reviews(30, seed=9)]
    (tmp_path / "guessed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"guessing": GUESSING, "given": {"mixup": "tmix", "mixup.unlabeled": {"guesses": "given"}}}
    both = toy(methods=given, measures=[], max_steps=5, unlabeled_file=str(tmp_path / "guessed.jsonl"))
    check_runs(both)
    found = {name: run_cell(both, Cell(name, 12, 0.0, 0), tmp_path / name) for name in given}
    first = [found[name]["curves"]["unlabeled"]["step"][0] for name in given]
    assert first == [3, 2] and found["given"]["mixup"]["unlabeled"]["guesses"] == "given"


def test_a_finished_run_is_known_again(toy, tmp_path):
    once = UnlabeledConfig(class_prior=[1, 1, 3, 1]).class_prior
    # Normalised twice, it would be another one in the last bits.
    assert [share / sum(once) for share in once] != once == UnlabeledConfig(class_prior=once).class_prior
    comparison = toy(methods=METHODS, unlabeled=20, measures=[], max_steps=2, seeds=[0])
    run_cell(comparison, comparison.cells()[1], tmp_path / "out/runs" / comparison.cells()[1].name)
    check_recipes(comparison, tmp_path / "out")
    changed = toy(methods={"none": None, "guessing": GUESSING}, unlabeled=20, measures=[], max_steps=2, seeds=[0])
    changed.methods["guessing"][0]["mixup.unlabeled"]["start"] = 0.3
    with pytest.raises(ValueError, match="methods: guessing: .* was made of"):
        check_recipes(changed, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabeled": None}, "methods: guessing: mixup.unlabeled: needs texts without labels; give unlabeled: 1000"),
        ({"unlabeled": 60}, "unlabeled=60: beside train_sizes=12 there are"),
        ({"unlabeled_file": "more.csv"}, "unlabeled=20: not with unlabeled_file='.*more.csv'"),
        (
            {"methods": {"none": None, "a": {"mixup": "tmix", "mixup.unlabeled": 3}}},
            "methods: a: mixup.unlabeled=3: exp",
        ),
        (
            {"methods": {"none": None, "a": {"mixup.unlabeled": {"guesses": "given"}}}},
            "methods: a: mixup.unlabeled.guesses='given': needs an unlabeled_file",
        ),
        ({"averaging": "none"}, "methods: guessing: averaging='none': the average guesses"),
        (
            {"methods": {"none": None, "a": GUESSING | {"mixup.clean_weight": 0.5}}},
            "methods: a: mixup.clean_weight=0.5",
        ),
        ({"train_file": "scores.csv", "validation_file": None, "test_file": None}, "unlabeled=20: needs classes"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_run(toy, tmp_path, changes, message):
    write_csv(tmp_path / "more.csv", ["text"], [["a film"]] * 9)
    write_csv(tmp_path / "scores.csv", ["text", "label"], [(f"a film {n}", n / 7) for n in range(60)])
    paths = {name: str(tmp_path / value) for name, value in changes.items() if str(value).endswith(".csv")}
    with pytest.raises(ValueError, match=message) as caught:
        check_runs(toy(**{"methods": METHODS, "unlabeled": 20} | changes | paths))
    assert "\n" not in str(caught.value)


def test_rows_that_no_method_uses_are_warned_of(toy, caplog):
    check_runs(toy(unlabeled=20))
    assert "unlabeled=20: no method uses them; one whose mixup has a field unlabeled does" in caplog.text


def test_a_method_may_have_more_updates(toy, tmp_path):
    methods = {"none": None, "longer": {"mixup": "none", "steps_factor": 1.7}}
    for length, expected in (({"max_steps": 5}, 8), ({"max_steps": None, "num_train_epochs": 1}, 6)):
        comparison = toy(methods=methods, **length)
        cell = Cell("longer", 12, 0.0, 0)
        data, _ = training_data(data_of(comparison), cell)
        trained = train_variant(comparison, cell, comparison.methods["longer"][0], data, tmp_path)
        # Three batches are an epoch; a part of a step is a step.
        assert trained.trainer.state.global_step == expected and trained.seconds > 0
    with pytest.raises(ValueError, match="steps_factor=0: expected a finite number"):
        toy(methods=methods | {"longer": {"mixup": "none", "steps_factor": 0}})


def test_early_stopping_beside_methods_is_that_of_all_of_them(toy, tmp_path, monkeypatch):
    comparison = toy(methods=METHODS | {"last": {"mixup": "none", "early_stopping": False}}, early_stopping=True)
    assert [one[0]["early_stopping"] for one in comparison.methods.values()] == [True, True, False]
    assert "early_stopping" not in comparison.run
    best, measure = [], BestWeights.on_step_end

    def noted(self, args, state, control, **kwargs):
        measure(self, args, state, control, **kwargs)
        best.append(self.best)

    monkeypatch.setattr(BestWeights, "on_step_end", noted)
    stopped = {"early_stopping": True, "unlabeled": 20, "label_noise": [0.9], "select_by": "accuracy"}
    comparison, cell = toy(methods=METHODS, **stopped), Cell("guessing", 12, 0.9, 0)
    data, _ = training_data(data_of(comparison), cell, unlabeled=20)
    found = train_variant(comparison, cell, comparison.methods["guessing"][0], data, tmp_path).dev_metrics
    # The averaged weights are those that were measured, and they are measured again at the end.
    assert best[-1] == max(best) == pytest.approx((found["accuracy"], -found["loss"]), abs=1e-6)


def test_a_folder_that_is_older_may_grow(toy, tmp_path):
    now = yaml.safe_load(yaml.safe_dump(vars(toy())))
    before = {name: value for name, value in now.items() if name not in ("unlabeled", "small_validation")}
    assert widened(before, now, tmp_path)["small_validation"] is False
    with pytest.raises(ValueError, match="differs in unlabeled"):
        widened(before, now | {"unlabeled": 20}, tmp_path)
