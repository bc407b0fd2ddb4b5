from dataclasses import asdict

import pytest

from hf_mixup.cli.compare.grid import Comparison
from hf_mixup.cli.compare.runs import Cell

BASE = {"output_dir": "out", "methods": ["none", "label_smoothing", "tmix"], "train_sizes": [20]}


def test_methods_by_name_are_fields_of_a_run():
    comparison = Comparison.from_dict(BASE)
    assert comparison.methods == {
        "none": [{"mixup": "none"}],
        "label_smoothing": [{"mixup": "none", "label_smoothing_factor": 0.1}],
        "tmix": [{"mixup": "tmix"}],
    }
    assert comparison.baseline == "none"


def test_methods_may_be_changed_recipes_variants_or_ones_own():
    methods = {
        "none": None,
        "embed_mix": [{"mixup.alpha": 0.2}, {"mixup.alpha": 1.0}],
        "mine": {"mixup": "mine.yaml", "learning_rate": 1e-3},
    }
    comparison = Comparison.from_dict(BASE | {"methods": methods})
    assert comparison.methods["embed_mix"] == [
        {"mixup": "embed_mix", "mixup.alpha": 0.2},
        {"mixup": "embed_mix", "mixup.alpha": 1.0},
    ]
    assert comparison.methods["mine"] == [{"mixup": "mine.yaml", "learning_rate": 1e-3}]


@pytest.mark.parametrize(
    ("baseline", "wanted"),
    [
        ({"none": None}, [{"reseed": 1000, "mixup": "none"}]),
        (
            {"tmix": [{"mixup.alpha": 0.2}, {}]},
            [{"reseed": 1000, "mixup": "tmix", "mixup.alpha": 0.2}, {"reseed": 1000, "mixup": "tmix"}],
        ),
    ],
)
def test_again_is_the_baseline_with_other_random_numbers(baseline, wanted):
    comparison = Comparison.from_dict(BASE | {"methods": {**baseline, "again": None}})
    assert comparison.methods["again"] == wanted
    values = asdict(comparison)
    assert Comparison.from_dict({**values.pop("run"), **values}) == comparison


def test_fields_of_the_runs_are_those_that_the_comparison_does_not_know():
    comparison = Comparison.from_dict(BASE | {"learning_rate": 1e-4, "seeds": [3]})
    assert (comparison.run, comparison.seeds) == ({"learning_rate": 1e-4}, [3])


def test_every_combination_is_a_cell_and_those_of_one_seed_come_first():
    comparison = Comparison.from_dict(BASE | {"seeds": [0, 1], "train_sizes": [5, 50], "label_noise": [0, 0.2]})
    cells = comparison.cells()
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells}) == 3 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12
    assert Cell("tmix", 5, 0.2, 1).name == "tmix-size5-noise0.2-seed1"


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 16, 30])
def test_parts_are_all_of_the_grid_and_no_part_has_more_of_a_method_than_another(parts):
    comparison = Comparison.from_dict(BASE | {"seeds": [0, 1, 2, 3, 4], "train_sizes": [5, 50]})
    shares = [comparison.share(part, parts) for part in range(1, parts + 1)]
    assert sorted(cell.name for share in shares for cell in share) == sorted(cell.name for cell in comparison.cells())
    assert all(share == [cell for cell in comparison.cells() if cell in share] for share in shares)
    for method in [*comparison.methods, None]:
        counts = [sum(method in (None, cell.method) for cell in share) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_more_parts_than_runs_are_refused():
    with pytest.raises(ValueError, match="part='2/7': there are 6 runs, so at most as many parts"):
        Comparison.from_dict(BASE | {"seeds": [0, 1]}).share(2, 7)


def test_a_comparison_comes_back_from_its_own_dict():
    comparison = Comparison.from_dict(BASE | {"learning_rate": 1e-4})
    values = asdict(comparison)
    assert Comparison.from_dict({**values.pop("run"), **values}) == comparison


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["none"]}, r"methods=\{'none': None\}: expected two or more"),
        ({"methods": ["none", "tmxi"]}, "methods='tmxi': expected one of .* Did you mean 'tmix'"),
        ({"methods": ["none", "temperature_scaling"]}, "methods: 'temperature_scaling' is not a name"),
        ({"methods": {"none": None, "a/b": {"mixup": "tmix"}}}, "methods: 'a/b' is not a name for a folder"),
        ({"methods": {"none": None, "tmix": 0.2}}, "methods: tmix=0.2: expected a mapping"),
        ({"methods": None}, "methods is missing"),
        ({"train_sizes": [0]}, "train_sizes=0: expected a whole number of 1 or more"),
        ({"train_sizes": [5, 5]}, "train_sizes=.*each number once"),
        ({"seeds": [0.5]}, "seeds=0.5: expected a whole number of 0 or more"),
        ({"label_noise": [1.5]}, "label_noise=1.5: expected a finite number"),
        ({"measures": ["boundry"]}, "measures='boundry': .* Did you mean 'boundary'"),
        ({"workers": 0}, "workers=0: expected a whole number of 1 or more"),
        ({"seed": 3}, "seed=3: the comparison sets it"),
        ({"baseline": True}, "baseline=True: the comparison sets it"),
        ({"seeds": 5}, r"seeds=5: expected a list, such as \[0, 1, 2\]"),
        ({"methods": ["none", "tmix", "tmix"]}, "methods: 'tmix' is there twice"),
        (
            {"methods": {"none": None, "a": {"prior_bias": True}}},
            "methods='a': .* with a name of its own says what it is",
        ),
        ({"label_noise": [0, 0.0]}, "label_noise=.*each share once"),
        ({"label_noise": []}, r"label_noise=\[\]: expected a list"),
        ({"measures": None}, "measures=None: expected a list"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end=True: say early_stopping: true"),
        ({"methods": {"none": None, "a": {"mixup": "tmix", "seed": 9}}}, "seed=9: .*in the method 'a'"),
        ({"methods": {"none": None, "a": {"mixup": "tmix", "max_steps": 9}}}, "max_steps=9: methods share it.*'a'"),
        (
            {"methods": {"none": None, "a": {"mixup": "tmix", "train_file": "b.csv"}}},
            "train_file=.*methods share",
        ),
        ({"methods": {"none": None, "a": {"mixup": "tmix", "reseed": -1}}}, "reseed=-1: expected a whole number of 0"),
        ({"mixup": "tmix"}, "mixup='tmix': the comparison sets it"),
        ({"fit_temperature": True}, "fit_temperature=True: a comparison measures every method with a fitted"),
        (
            {"methods": {"none": None, "tmix": {"fit_temperature": True}}},
            r"fit_temperature=True: .*leave it out \(in the method 'tmix'\)",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Comparison.from_dict(BASE | changes)
