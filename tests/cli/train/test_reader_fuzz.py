"""Small random files against a slow reading by Python's csv and json modules: the same rows and labels, or one line."""

import csv
import io
import json
import random
from decimal import Decimal

import pytest
from datasets import disable_progress_bars

from hf_mixup.cli.train.data import load_splits
from hf_mixup.cli.train.run_fields import DataArguments

LABELS = (
    *(["pos", "neg"], ["pos ", "neg", " pos"], ["0", "1"], ["1.0", "0.0"], ["007", "7", "070"], ["TRUE", "FALSE"]),
    *(["0.5", "1.5", "2"], ["1.5", "n/a"], ["1,5", "2,5"], ["so, so", "gut"], ["None", "NA"], ["a|b", "c"]),
    *(["1e3", "1000"], ["9007199254740993", "9007199254740992"], ["[1, 0]", "[0, 1]"], ['"a"', "b"], ["Über", "ü"]),
)
PIECES = (
    "w1",
    "w2",
    " ",
    "  ",
    ",",
    ";",
    "\t",
    "|",
    '"',
    "'",
    "\n",
    "\r\n",
    "é",
    "ß",
    "None",
    "5",
    "\u2028",
    "\\",
    "#",
)
ENCODINGS = (None, None, None, "utf-8-sig", "latin-1", "cp1252", "utf-16")
FEW, MANY = 500, 10_000


def random_text(draw):
    return "".join(draw.choices(PIECES, k=draw.randint(1, 6)))


def random_rows(draw):
    labels = draw.choice(LABELS)
    rows = [(random_text(draw), draw.choice(labels)) for _ in range(draw.randint(2, 12))]
    if draw.random() < 0.2:
        rows[draw.randrange(len(rows))] = ("", draw.choice(labels))
    if draw.random() < 0.1:
        rows[draw.randrange(len(rows))] = (random_text(draw), "")
    return rows


def delimited(draw, rows, delimiter):
    """The text of a file, with quotation marks as needed, everywhere, or nowhere, as people write files by hand."""
    style = draw.choice(("minimal", "all", "none"))
    end = draw.choice(("\n", "\r\n"))
    extra = draw.random() < 0.3
    table = [["text", "label"], *map(list, rows)]
    if extra:
        table = [[str(number), *row] for number, row in enumerate(table)]
    if style == "none":
        lines = [delimiter.join(" ".join(cell.splitlines()) for cell in row) for row in table]
        if draw.random() < 0.3:
            lines.insert(draw.randint(1, len(lines)), "")
        return end.join(lines), False
    out = io.StringIO()
    quoting = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(table)
    return out.getvalue(), True


def slow_reading(text, delimiter):
    """The rows that Python's csv module finds, as (text, label)."""
    header, *rows = [
        row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if "".join(row).strip()
    ]
    found = [dict(zip([name.strip() for name in header], row, strict=False)) for row in rows]
    return [(row.get("text", ""), row.get("label", "")) for row in found]


def encodes(text, encoding):
    try:
        return text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8")


def same(expected, given):
    """Whether a label as written is a class name, or a score."""
    expected = expected.strip()
    if isinstance(given, str):
        return given in (expected, expected.removesuffix(".0"))
    return given == pytest.approx(float(Decimal(expected)))


def check(path, expected, tmp_path, **options):
    """Read a file: what it holds, or one line; returns whether it was read."""
    try:
        args = DataArguments(train_file=str(path), validation_file=str(path), **options)
        data = load_splits(args, cache_dir=str(tmp_path / "cache"))
    except ValueError as error:
        assert str(error) and "Traceback" not in str(error)
        return False
    rows = data.splits["train"]
    kept = [row for row in expected if row[0].strip()]
    assert data.dropped["train"] == [number for number, row in enumerate(expected, 1) if not row[0].strip()]
    labels = [data.label_names[label] if data.label_names else label for label in rows["labels"]]
    assert rows["text"][:] == [text for text, _ in kept]
    assert all(same(written, given) for (_, written), given in zip(kept, labels, strict=True))
    assert len({written.strip() for _, written in kept}) == len(set(labels))
    return True


def check_delimited(seed, tmp_path):
    draw = random.Random(seed)
    suffix, delimiter = draw.choice(((".csv", ","), (".csv", ";"), (".csv", "\t"), (".tsv", "\t"), (".csv", "|")))
    rows = random_rows(draw)
    text, is_well_formed = delimited(draw, rows, delimiter)
    encoding = draw.choice(ENCODINGS)
    path = tmp_path / f"[{seed}]{suffix}"
    path.write_bytes(encodes(text, encoding))
    options = {"encoding": encoding} if encoding and draw.random() < 0.8 else {}
    if (suffix, delimiter) not in ((".csv", ","), (".tsv", "\t")) and draw.random() < 0.8:
        options["csv_delimiter"] = delimiter
    if not is_well_formed and draw.random() < 0.3:
        options["csv_quoting"] = "none"
    # Text that another encoding can write is wrong, and nobody can see it.
    if options.get("encoding") != encoding or encodes(text, encoding).decode(encoding or "utf-8-sig") != text:
        expected = None
    elif is_well_formed:
        expected = rows
    elif "csv_quoting" in options:
        expected = [(" ".join(text.splitlines()), label) for text, label in rows]
    else:
        expected = slow_reading(text, delimiter)
        expected = expected if len(expected) == len(rows) else None
    if expected is None:
        return check_refused_or_whole(path, rows, tmp_path, **options)
    return check(path, expected, tmp_path, **options)


def check_refused_or_whole(path, rows, tmp_path, **options):
    """A file that says something else than was meant: it is refused, or has as many rows as were meant."""
    try:
        args = DataArguments(train_file=str(path), validation_file=str(path), **options)
        data = load_splits(args, cache_dir=str(tmp_path / "cache"))
    except ValueError:
        return False
    assert data.splits["train"].num_rows + len(data.dropped["train"]) == len(rows)
    return True


def check_json(seed, tmp_path):
    draw = random.Random(seed)
    kinds = (
        str,
        lambda label: None,
        lambda label: len(label),
        lambda label: len(label) / 2,
        bool,
        lambda label: [label],
    )
    kind = draw.choice(kinds)
    rows = [{"text": text or None, "label": kind(label)} for text, label in random_rows(draw)]
    if draw.random() < 0.2:
        draw.choice(rows)["label"] = draw.choice(("x", 3, None, True, 2.5, ["x"], {}))
    if draw.random() < 0.1:
        draw.choice(rows).pop("label")
    suffix = draw.choice((".json", ".jsonl"))
    text = json.dumps(rows) if draw.random() < 0.5 else "\n".join(map(json.dumps, rows))
    path = tmp_path / f"[{seed}]{suffix}"
    path.write_text(text)
    texts = [row["text"] for row in rows if (row["text"] or "").strip()]
    try:
        data = load_splits(DataArguments(train_file=str(path), validation_file=str(path)), str(tmp_path / "cache"))
    except ValueError as error:
        assert str(error)
        return False
    assert data.splits["train"]["text"][:] == texts
    return True


def fuzz(count, tmp_path):
    disable_progress_bars()
    read = [check_delimited(seed, tmp_path) if seed % 5 else check_json(seed, tmp_path) for seed in range(count)]
    # Most files are sound enough, so that the check is not one of refusals.
    assert 0.3 < sum(read) / count < 0.9


def test_few_random_files(tmp_path):
    fuzz(FEW, tmp_path)


@pytest.mark.slow
def test_many_random_files(tmp_path):
    fuzz(MANY, tmp_path)
