"""The report of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd
import yaml

from hf_mixup.cli.compare.canvas import Pictured
from hf_mixup.cli.compare.findings import LEADING, finding, metric_name, select, survivors, verdicts
from hf_mixup.cli.compare.plots import MOST_DIAGRAMS, MOST_LINES, figures
from hf_mixup.cli.compare.runs import asked_cells, load_runs, read_asked
from hf_mixup.cli.compare.statistics import BETTER, DIVERGED, EQUIVALENT, NO_WORSE, PRIMARY, SAME, WORSE
from hf_mixup.cli.compare.table import number, verdict_of, without_doubles, write_tables
from hf_mixup.config.files import write_whole

DIFFERENCES = (
    "Mean differences to {baseline} over seeds, with their 95 % t intervals, uncorrected. A filled circle: better "
    "after correction. A filled cross: worse after correction. An open circle: neither, too few seeds, or neither way "
    "is better. No circle: a method or the baseline diverged, or nothing can differ."
)
HOW_TO_READ = (
    "{seeds}; the runs of one seed have the same training rows, and the differences are taken seed by seed. "
    "“Better” and “worse” go by p values of paired t tests after correction, q at most 0.05. Those of the primary "
    "endpoints ({primary}) are corrected by Holm, over all of them at every size and label noise: a method that is no "
    "different gets one mark or more in one comparison of twenty. All other metrics were explored, and corrected by "
    "Benjamini and Hochberg: one mark in twenty is false. "
    f"“{EQUIVALENT.capitalize()}” and “{NO_WORSE}” go by one-sided t tests against the margin that stands beside "
    f"them, corrected alike. “{SAME.capitalize()}” does not show that methods are equal; “detectable” is the "
    "difference that four of five such comparisons would see before correction. "
    f"“{DIVERGED.capitalize()}”: in some seed the test loss of the method, or of the baseline, is no finite number. "
    "The seeds that are left would flatter it, and get no verdict."
)
CAPTIONS = {
    "differences": DIFFERENCES,
    "reliability": "Accuracy against confidence. A calibrated model lies on the dashed line; below it, the model is "
    "too confident. The bins of all seeds are put together by their counts. At most {diagrams} methods.",
    "boundary": "From one test text (0) to another (1) on a straight line between their embeddings. Lines: means over "
    "seeds; bands: 95 % t intervals. At most {lines} methods.",
    "boundary_numbers": "Gradient norm: of the loss at the embeddings. Uncertain width: the part of the way between "
    "two texts on which the largest probability is below 0.75. Generalisation gap: test loss minus training loss. "
    + DIFFERENCES,
    "noise": "Perturbed test texts. Lines: means over seeds; bars: 95 % t intervals. The methods are drawn a little "
    "apart. At most {lines} methods.",
    "outliers": "Texts of another kind (OOD) told apart by the largest probability and by energy. AUROC: area under "
    "the ROC curve, 0.5 is chance. FPR95: the share of them taken for the task's where 95 % of the task's are kept. "
    + DIFFERENCES,
    "learning": "Losses on clean texts during the training. Lines: means over seeds; bands: 95 % t intervals. At most "
    "{lines} methods.",
    "unlabeled": "Of the methods that use them. Drift: half the sum of the differences between the shares of the "
    "guesses and of the labels. Lines: means over seeds; bands: 95 % t intervals. At most {lines} methods.",
    "sizes": "Means over seeds; bars: 95 % t intervals. The methods are drawn a little apart. At most {lines} methods.",
    "memorised": "Of the training rows with a wrong label: the share that the model predicts with that wrong label. "
    "Means over seeds; bars: 95 % t intervals.",
}
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, "DejaVu Sans", Arial, sans-serif; color: #111; background: #fff; max-width: 68rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #999; }
h3 { font-size: 1.05rem; margin-bottom: 0.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc; }
thead th { border-bottom: 2px solid #111; }
.interval { color: #444; white-space: nowrap; }
figure { margin: 1.5rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; }
figcaption { font-size: 0.85rem; color: #444; } pre { background: #f3f3f3; padding: 0.8rem; white-space: pre-wrap; }
@media print { body { font-size: 10pt; margin: 0; max-width: none; }
  table { font-size: 7pt; } th, td { padding: 0.15rem 0.3rem; } .interval { white-space: normal; }
  tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def write_report(folder: str | Path) -> Path:
    """Write the tables, the pictures and the report of a comparison.

    Args:
        folder (`str` or `Path`): the output folder of a comparison; its runs need not all be finished.

    Returns:
        `Path`: `report/report.html` in the folder. It holds its pictures, which also lie beside it as PNG files.

    Raises:
        FileNotFoundError: if the folder holds no comparison.
        ValueError: if no run is finished.
        ImportError: if matplotlib is not installed.
    """
    folder = Path(folder)
    asked = read_asked(folder)
    results, summary = write_tables(folder)
    pictured = Pictured(results, summary, load_runs(folder), asked.get("balanced", True))
    drawn = figures(pictured)
    target = folder / "report"
    target.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(target / f"{name}.png", dpi=150)
    images = {name: (target / f"{name}.png").read_bytes() for name in drawn}
    parts = [
        _verdict(pictured, asked),
        _main_tables(pictured),
        _pictures(images, pictured.baseline),
        _all_metrics(without_doubles(summary)),
        _what_was_run(pictured, asked),
    ]
    title = f"{len(asked['methods'])} methods compared with each other"
    page = PAGE.substitute(title=escape(title), body="\n".join(parts))
    with write_whole(target / "report.html") as part:
        part.write_text(page, encoding="utf-8")
    return target / "report.html"


def _verdict(pictured: Pictured, asked: dict[str, Any]) -> str:
    """What is better and worse after correction, what is equivalent, and what else was seen, in words."""
    lines = ["<h2>Verdict</h2>", f"<p>Every method against <b>{escape(pictured.baseline)}</b>, on the test split.</p>"]
    lines += [_survivors(title, pictured.summary, True, words) for title, words in LEADING.items()]
    for size, noise, name in pictured.settings:
        lines.append(f"<h3>{escape(name)}</h3>\n<ul>")
        for metric in (metric for metric in PRIMARY[pictured.problem_type] if metric in pictured.main):
            found = verdicts(pictured.summary, metric, size, noise)
            said = "; ".join(f"{word}: {', '.join(methods)}" for word, methods in found.items() if methods)
            sentence = finding(pictured.summary, metric, pictured.baseline, size, noise)
            lines.append(f"<li><b>{escape(sentence)}.</b>")
            lines.append(f"<br>{escape(said)}.</li>" if said else "</li>")
        lines.append("</ul>")
    explored = without_doubles(pictured.summary)
    lines.append(_survivors("Explored: better or worse", explored, False, (BETTER, WORSE)))
    most = len(asked["seeds"])
    primary = ", ".join(metric_name(metric) for metric in PRIMARY[pictured.problem_type] if metric in pictured.main)
    seeds = f"From up to {most} seed{'s' * (most != 1)}"
    lines.append(f"<p>{HOW_TO_READ.format(seeds=seeds, primary=primary)}</p>")
    return "\n".join(lines)


def _survivors(title: str, summary: pd.DataFrame, primary: bool, words: tuple[str, ...]) -> str:
    """What is said of each method by some verdicts, a line for each."""
    said = survivors(summary, primary, words)
    entries = "\n".join(f"<li><b>{escape(method)}</b>: {escape(metrics)}</li>" for method, metrics in said.items())
    return f"<h3>{escape(title)}</h3>\n" + (f"<ul>\n{entries}\n</ul>" if said else "<p>Nothing.</p>")


def _main_tables(pictured: Pictured) -> str:
    """A table of the main metrics for each size and label noise."""
    heads = "".join(f"<th>{escape(metric_name(metric))}</th>" for metric in pictured.main)
    lines = [
        "<h2>Main metrics</h2>",
        "<p>Mean ± standard deviation over seeds; below it the mean difference to "
        f"{escape(pictured.baseline)} with its 95 % interval over seeds, that over seeds and test texts, "
        "and the verdict. Intervals are not corrected, verdicts are.</p>",
    ]
    for size, noise, name in pictured.settings:
        head = f"<thead><tr><th>method</th><th>seeds</th>{heads}\n</tr></thead>"
        lines.append(f'<h3>{escape(name)}</h3>\n<div class="wide"><table>{head}<tbody>')
        lines += [_row(pictured, method, size, noise) for method in pictured.methods]
        lines.append("</tbody></table></div>")
    return "\n".join(lines)


def _row(pictured: Pictured, method: str, size: int, noise: float) -> str:
    found = [select(pictured.summary, metric, size, noise).set_index("method") for metric in pictured.main]
    seeds = max((int(table.loc[method, "seeds"]) for table in found if method in table.index), default=0)
    entries = [_entry(table.loc[method]) if method in table.index else "–" for table in found]
    cells = "".join(f"<td>{entry}</td>" for entry in entries)
    return f"<tr><th>{escape(method)}</th><td>{seeds}</td>{cells}</tr>"


def _entry(row: pd.Series) -> str:
    entry = f"{number(row['mean'])} ± {number(row['std'])}"
    if pd.notna(row["low"]):
        interval = f"{number(row['difference'], '+')} [{number(row['low'], '+')}, {number(row['high'], '+')}]"
        if pd.notna(row["low_texts"]):
            interval += f"<br>with other texts [{number(row['low_texts'], '+')}, {number(row['high_texts'], '+')}]"
        entry += f'<br><span class="interval">{interval}</span>'
    said = verdict_of(row)
    if row["verdict"] == SAME and pd.notna(row["detectable"]):
        said += f'<br><span class="interval">detectable: {number(row["detectable"])}</span>'
    word = f"<b>{said}</b>" if row["verdict"] in (BETTER, WORSE, DIVERGED) else said
    return f"{entry}<br>{word}" if word else entry


def _pictures(images: dict[str, bytes], baseline: str) -> str:
    lines = ["<h2>Pictures</h2>"]
    for name, image in images.items():
        caption = escape(CAPTIONS[name].format(baseline=baseline, lines=MOST_LINES, diagrams=MOST_DIAGRAMS))
        source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        lines.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    return "\n".join(lines)


def _all_metrics(summary: pd.DataFrame) -> str:
    shown = summary.to_html(index=False, border=0, na_rep="–", float_format=lambda value: f"{value:.4g}")
    shown = f'<div class="wide">{shown}</div>'
    return f"<h2>All metrics</h2>\n<details><summary>{len(summary)} rows</summary>\n{shown}</details>"


def _what_was_run(pictured: Pictured, asked: dict[str, Any]) -> str:
    wanted, finished = len(asked_cells(asked)), len(pictured.runs)
    written = escape(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
    return (
        f"<h2>What was run</h2>\n<p>{finished} of {wanted} runs are finished, {wanted - finished} missing. "
        f"Every value of every run is in results.csv, this table in summary.csv.</p>\n<pre>{written}</pre>"
    )
