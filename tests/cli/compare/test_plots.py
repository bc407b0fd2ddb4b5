import json

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the plots extra")

from hf_mixup.cli.compare.canvas import Pictured, mean_and_interval
from hf_mixup.cli.compare.findings import finding, overview
from hf_mixup.cli.compare.plots import PICTURES, figures
from hf_mixup.cli.compare.runs import load_runs
from hf_mixup.cli.compare.table import collect, summarise
from tests.toy_comparison import change_run, write_comparison


def pictured(folder, baseline="none"):
    results = collect(folder)
    return Pictured(results, summarise(results, baseline), load_runs(folder))


def titles(drawn):
    return {name: " ".join(figure.get_suptitle().split()) for name, figure in drawn.items()}


def test_titles_state_what_was_found(tmp_path):
    found = titles(figures(pictured(write_comparison(tmp_path, noise=[0.0, 0.2]))))
    assert list(found) == list(PICTURES)
    assert found["reliability"].startswith("temperature_scaling is better calibrated than none: ECE 0.040 against 0.1")
    assert found["sizes"].startswith("tmix is more accurate than none: accuracy 0.7")
    assert found["differences"].startswith("Against none: accuracy is better with tmix;")
    assert found["boundary_numbers"].startswith("Against none: gradient norm is better with tmix (20 ")
    assert found["outliers"].startswith("Against none: OOD AUROC (softmax) is better with ")
    assert found["noise"].startswith("tmix is better than none: accuracy (characters 0.3) 0.")
    assert "(20 training rows per class, 20 % wrong labels)" in found["memorised"]


def test_titles_where_nothing_was_found(tmp_path):
    folder = write_comparison(tmp_path, methods=["none", "same"], sizes=[20, 40], seeds=[0, 1, 2])
    for size in (20, 40):
        for method in ("none", "same"):
            for seed in range(3):
                change_run(folder, f"{method}-size{size}-noise0-seed{seed}", accuracy=0.7 + 0.1 * seed)
    assert titles(figures(pictured(folder)))["sizes"].startswith("No difference in accuracy was seen")


def diverge(folder, *names):
    """As a run that diverged leaves it: no value, and no bin of its reliability is filled."""
    for name in names:
        path = folder / "runs" / name / "result.json"
        result = json.loads(path.read_text())
        result["metrics"] = dict.fromkeys(result["metrics"])
        for curve in result["curves"].values():
            curve |= {field: [None] * len(values) for field, values in curve.items() if field not in ("step", "t")}
        for curve in ("reliability", "reliability_scaled"):
            result["curves"][curve]["count"] = [0] * 15
        path.write_text(json.dumps(result))
    return folder


@pytest.mark.filterwarnings("error", "default::DeprecationWarning")
def test_pictures_name_who_diverged(tmp_path):
    folder = write_comparison(tmp_path, noise=[0.0, 0.2])
    lost = [f"tmix-size20-noise{noise}-seed{seed}" for noise in ("0", "0.2") for seed in range(5)]
    drawn = figures(pictured(diverge(folder, *lost, "label_smoothing-size20-noise0-seed3")))
    found = titles(drawn)
    assert list(found) == list(PICTURES)
    assert found["reliability"].startswith("temperature_scaling is better calibrated than none: ECE 0.040 against 0.1")
    for name in ("reliability", "differences", "boundary", "learning", "outliers"):
        assert "label_smoothing diverged in 1 of 5 seeds; tmix diverged in 5 of 5 seeds (20 training" in found[name]
    assert "tmix" not in found["differences"].partition("; label_smoothing diverged")[0]
    said = [text.get_text() for text in drawn["differences"].axes[0].texts]
    assert said == ["diverged in 1 of 5 seeds", "diverged in 5 of 5 seeds"]
    legend = [text.get_text() for text in drawn["learning"].legends[0].get_texts()]
    assert legend == ["none", "label_smoothing (1 run diverged)", "tmix (10 runs diverged)"]
    for figure in drawn.values():
        figure.canvas.draw()


@pytest.mark.filterwarnings("error", "default::DeprecationWarning")
def test_pictures_of_a_baseline_that_diverged(tmp_path):
    folder = diverge(write_comparison(tmp_path, sizes=[20]), *(f"none-size20-noise0-seed{seed}" for seed in range(5)))
    drawn = figures(pictured(folder))
    assert titles(drawn)["reliability"].startswith("No verdict on ECE: baseline none diverged in 5 of 5 seeds (20 ")
    assert titles(drawn)["differences"].startswith("Against none: baseline none diverged in 5 of 5 seeds (20 ")
    said = [text.get_text() for text in drawn["differences"].axes[2].texts]
    assert said == ["diverged in 5 of 5 seeds", "baseline diverged", "baseline diverged"]


def test_no_picture_of_runs_that_all_diverged(tmp_path):
    folder = write_comparison(tmp_path, methods=["none"], sizes=[20], seeds=[0])
    assert "differences" not in figures(pictured(diverge(folder, "none-size20-noise0-seed0")))


def test_findings(tmp_path):
    summary = pictured(write_comparison(tmp_path, sizes=[20])).summary
    none = summary[(summary["method"] == "none") & (summary["metric"] == "ece")]["mean"].item()
    turned = summarise(collect(tmp_path), "tmix")
    assert "temperature_scaling" in finding(summary, "nll", "none", 20, 0.0)
    assert finding(turned, "accuracy", "tmix", 20, 0.0).startswith("No method is better than tmix, and ")
    assert f"against {none:.3f}" in finding(summary, "ece", "none", 20, 0.0)
    one = pictured(write_comparison(tmp_path / "one", seeds=[0])).summary
    assert finding(one, "ece", "none", 20, 0.0) == "Too few seeds for a verdict on ECE"
    assert overview(one, ["ece"], "none", 20, 0.0) == "Against none: too few seeds for a verdict"
    alone = pictured(write_comparison(tmp_path / "alone", methods=["none"], sizes=[20])).summary
    assert finding(alone, "accuracy", "none", 20, 0.0) == "No verdict on accuracy: nothing was compared with none"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sizes": [20]}, set(PICTURES) - {"sizes", "memorised"}),
        ({"kind": "regression"}, {"differences", "sizes"}),
        ({"kind": "multi_label_classification"}, {"differences", "noise", "sizes"}),
        ({"seeds": [0]}, set(PICTURES) - {"memorised"}),
        ({"noise": [0.2], "sizes": [20]}, set(PICTURES) - {"sizes"}),
    ],
)
def test_pictures_without_data_are_left_out(tmp_path, changes, expected):
    assert set(figures(pictured(write_comparison(tmp_path, **changes)))) == expected


def test_missing_runs_and_curves(tmp_path):
    folder = write_comparison(tmp_path)
    for run in (folder / "runs").glob("tmix-size80-*"):
        (run / "result.json").unlink()
    for run in (folder / "runs").glob("none-size20-*"):
        change_run(folder, run.name, accuracy=None)
    assert set(figures(pictured(folder))) == set(PICTURES) - {"memorised"}


def test_only_methods_with_rows_without_labels_have_lines_of_them(tmp_path):
    figure = figures(pictured(write_comparison(tmp_path, sizes=[20])))["unlabeled"]
    assert [axis.get_ylabel().partition(" ")[0] for axis in figure.axes] == ["mean", "drift", "answers"]
    assert [[line.get_label() for line in axis.lines] for axis in figure.axes] == [["tmix"]] * 3


def test_differences_of_what_was_measured(tmp_path):
    drawn = figures(pictured(write_comparison(tmp_path, sizes=[20])))
    labels = {name: [axis.get_xlabel() for axis in drawn[name].axes] for name in ("boundary_numbers", "outliers")}
    assert [label.replace("\n", ", ") for label in labels["boundary_numbers"]] == [
        "difference in gradient norm, better: to the left",
        "difference in uncertain width, neither way better",
        "difference in generalisation gap (nats), neither way better",
    ]
    # What has no value in any run has no column, and what scaling does not touch no row.
    assert labels["outliers"] == ["difference in OOD AUROC (softmax)\nbetter: to the right"]
    shown = [label.get_text() for label in drawn["outliers"].axes[0].get_yticklabels()]
    assert shown == ["label_smoothing", "tmix"]


def test_reliability_weighs_seeds_by_count(tmp_path):
    data = pictured(write_comparison(tmp_path, methods=["none", "tmix"], sizes=[20], seeds=[0, 1]))
    curve = {"confidence": [0.25, 0.75], "accuracy": [0.0, 0.5], "count": [1, 10]}
    other = {"confidence": [None, 0.75], "accuracy": [None, 1.0], "count": [0, 30]}
    for run, one in zip(data.runs, [curve, other, curve, other], strict=True):
        run["curves"] = {"reliability": one}
    line = figures(data)["reliability"].axes[0].lines[-1]
    assert np.asarray(line.get_ydata()) == pytest.approx([0, (10 * 0.5 + 30 * 1.0) / 40])


def test_methods_differ_in_more_than_colour(tmp_path):
    data = pictured(write_comparison(tmp_path))
    looks = [(data.style(name)["marker"], str(data.style(name)["linestyle"])) for name in data.methods]
    assert len({marker for marker, _ in looks}) == len({line for _, line in looks}) == len(data.methods)


def test_intervals():
    half = 4.303 / np.sqrt(3)
    interval = mean_and_interval([1.0, 2.0, 3.0, np.nan], (-9, 9))
    assert interval == pytest.approx((2, 2 - half, 2 + half), rel=1e-3)
    assert mean_and_interval([0.8, 0.9, 1.0], (0, 1)) == pytest.approx((0.9, 0.652, 1), abs=1e-3)
    assert np.isnan(mean_and_interval([0.8, 1.0], (0, 1))[1:]).all()


def test_a_ninth_method_looks_like_no_other(tmp_path):
    data = pictured(write_comparison(tmp_path))
    data.methods = [f"method {number}" for number in range(12)]
    looks = {
        str({name: look for name, look in data.style(method).items() if name != "label"}) for method in data.methods
    }
    assert len(looks) == 12


def test_rows_of_whatever_class_are_not_counted_per_class(tmp_path):
    folder = write_comparison(tmp_path)
    results = collect(folder)
    loose = Pictured(results, summarise(results, "none"), load_runs(folder), balanced=False)
    assert pictured(folder).name(20) == "20 training rows per class" and loose.name(20) == "20 training rows"
    assert figures(loose)["sizes"].axes[0].get_xlabel() == "training rows"
