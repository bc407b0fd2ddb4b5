import base64
import re
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib", reason="needs the plots extra")

from hf_mixup.cli.compare.plots import PICTURES
from hf_mixup.cli.compare.report import write_report
from tests.toy_comparison import change_run, write_comparison


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_comparison(tmp_path_factory.mktemp("comparison"), text_column="<b>text & more", noise=[0.0, 0.2])
    (folder / "runs/tmix-size20-noise0-seed0/result.json").unlink()
    return write_report(folder)


def test_nothing_is_fetched(report):
    page = report.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe", re.sub(r"base64,[^\"]*", "", page))
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert len(sources) == page.count("<img") == len(PICTURES)
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")


def test_pictures_lie_beside_the_report(report):
    assert len(list(report.parent.glob("*.png"))) == len(PICTURES)
    assert report.name == "report.html" and not list(report.parent.glob("*.part"))
    assert (report.parent.parent / "summary.csv").is_file() and (report.parent.parent / "results.csv").is_file()


def test_verdict_comes_first(report):
    page = report.read_text(encoding="utf-8")
    heads = re.findall("<h2>(.*?)</h2>", page)
    assert heads == ["Verdict", "Main metrics", "Pictures", "All metrics", "What was run"]
    verdict = page[: page.index("Main metrics")]
    assert "tmix is more accurate than none" in verdict and "better: tmix" in verdict
    assert "From up to 5 seeds" in verdict and "corrected by Holm" in verdict and "not corrected" not in verdict
    parts = re.findall("<h3>(.*?)</h3>", verdict)
    assert parts[0] == "Better or worse after correction" and parts[1].startswith("Equivalent to the baseline, or no")
    assert parts[-1] == "Explored: better or worse" and len(parts) == 7
    first = verdict[verdict.index(parts[0]) : verdict.index(parts[1])]
    assert "<b>tmix</b>: better: accuracy (everywhere)" in first and "gradient" not in first
    assert "gradient norm" in verdict[verdict.index(parts[-1]) :]


def test_what_was_run(report):
    page = report.read_text(encoding="utf-8")
    assert "59 of 60 runs are finished, 1 missing" in page
    assert "&lt;b&gt;text &amp; more" in page and "<b>text" not in page


def test_names_are_escaped(tmp_path):
    page = write_report(write_comparison(tmp_path, methods=["a<i>", "b<i>"], sizes=[20], seeds=[0, 1])).read_text(
        "utf-8"
    )
    assert "<i>" not in page and page.count("b&lt;i&gt;") > 5


def test_who_diverged_is_named_and_not_praised(tmp_path):
    folder = write_comparison(tmp_path, methods=["none", "tmix"], sizes=[20])
    names = ("accuracy", "macro_f1", "nll", "ece", "test_loss")
    change_run(folder, "tmix-size20-noise0-seed1", **dict.fromkeys(names))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "No verdict on accuracy: tmix diverged in 1 of 5 seeds." in page
    assert "better: temperature_scaling" in page and "better: tmix" not in page
    row = page[page.index("<tr><th>tmix</th>") :].partition("</tr>")[0]
    assert row.count("<b>diverged in 1 of 5 seeds</b>") == 4 and "interval" not in row


def test_few_runs(tmp_path):
    folder = write_comparison(tmp_path, kind="regression", seeds=[0])
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Too few seeds for a verdict on Pearson correlation" in page and "From up to 1 seed;" in page
    with pytest.raises(FileNotFoundError, match="comparison.yaml"):
        write_report(tmp_path / "nowhere")


def test_no_training_stack_is_loaded_and_missing_runs_are_named(tmp_path):
    folder = write_comparison(tmp_path)
    for seed in range(5):
        (folder / f"runs/tmix-size80-noise0-seed{seed}/result.json").unlink()
    code = f"""if True:
        import sys
        from hf_mixup.cli.main import main
        assert main(["report", {str(folder)!r}]) == 0
        print([name for name in ("torch", "transformers", "datasets", "accelerate", "sklearn") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "5 of 30 runs are missing: tmix-size80-noise0-seed0, " in done.stderr and "seed2 and 2 more;" in done.stderr
