"""A file of rows as a dataset: the named file and nothing else, with its cells as they are written."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from hf_mixup.cli.train import conll
from hf_mixup.cli.train.delimited import DELIMITERS, QUOTINGS, read_delimited
from hf_mixup.config import checks
from hf_mixup.config.checks import nearest
from hf_mixup.config.files import write_whole

logger = logging.getLogger(__name__)

NESTED = (".json", ".jsonl", ".parquet")
SUFFIXES = (*DELIMITERS, *NESTED)
CONLL = ".conll"
# What to do with files of other kinds, by their names and by how they begin.
_TABLE, _ARCHIVE = " Save the table as CSV, in UTF-8.", " Unpack it first."
PACKED = {".xlsx": _TABLE, ".xls": _TABLE, ".ods": _TABLE, ".gz": _ARCHIVE, ".zip": _ARCHIVE}
# Of tokens.
PACKED[".csv"] = " A cell of a CSV file holds no list."
PACKED_STARTS = {b"PK\x03\x04": " If it is a workbook, save the table as CSV; unpack archives.", b"\x1f\x8b": _ARCHIVE}
# What was read is kept under a digest of the file; another number if the same bytes come to mean something else.
READER_VERSION = "1"
ROWS_AT_A_TIME = 1000
# In the metadata of the rows: columns that have no one type, and why.
LEFT_OUT = "left_out"


@dataclass(frozen=True)
class FileFormat:
    """What a file does not say of itself.

    Args:
        csv_delimiter (`str`, *optional*): what separates the cells of CSV files; `tab` or `\\t` is a tab. By default a
            comma, in `.tsv` files a tab.
        csv_quoting (`str`, *optional*): `"minimal"`, `"backslash"` or `"none"`, see `read_delimited`.
        encoding (`str`, *optional*): of CSV and JSON files, as Python names it; defaults to UTF-8.

    Raises:
        ValueError: for a delimiter of several characters, an unknown quoting or encoding.
    """

    csv_delimiter: str | None = None
    csv_quoting: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        named = {"tab": "\t", "\\t": "\t"}.get(self.csv_delimiter or "", self.csv_delimiter)
        object.__setattr__(self, "csv_delimiter", named)
        if named is not None and (len(named) != 1 or named in '"\r\n'):
            raise ValueError(f"csv_delimiter={named!r}: expected one character, such as ';' or tab.")
        if self.csv_quoting is not None:
            checks.choice(*QUOTINGS)("csv_quoting", self.csv_quoting)
        if self.encoding is not None:
            try:
                is_text = codecs.lookup(self.encoding)._is_text_encoding
            except LookupError:
                is_text = False
            if not is_text:
                raise ValueError(f"encoding={self.encoding!r}: unknown; expected one such as utf-8, cp1252 or utf-16.")


def read_file(
    field: str,
    path: str,
    file_format: FileFormat,
    cache_dir: str | None = None,
    needed: Collection[str] = (),
    of_tokens: bool = False,
) -> Dataset:
    """Read a CSV, TSV, JSON, JSONL, Parquet or CoNLL file.

    Args:
        field (`str`): the field of the run that names the file, for messages.
        path (`str`): the file; characters such as `*` and `[` mean themselves.
        file_format (`FileFormat`): delimiter, quoting, encoding.
        cache_dir (`str`, *optional*): where the rows are kept, under a digest of the file. Defaults to the cache of
            `datasets`.
        needed (`Collection[str]`): columns that must not be left out, if they are there.
        of_tokens (`bool`, defaults to `False`): whether a row is a list of tokens, so that text files are CoNLL files.

    Returns:
        `Dataset`: the cells of CSV files as text; of the others as their types say, one type per column. Columns of a
            JSON file that have several types are left out, which a warning says.

    Raises:
        ValueError: for a file that cannot be read as what its name says, or that could be meant in two ways.
        FileNotFoundError: if there is no such file.
    """
    suffix = Path(path).suffix.lower()
    allowed = (*conll.SUFFIXES, *NESTED) if of_tokens else SUFFIXES
    if suffix not in allowed:
        advice = PACKED.get(suffix) or nearest(suffix, allowed)
        raise ValueError(f"{field}={path!r}: expected a file named {', '.join(allowed)}.{advice}")
    if not Path(path).is_file():
        folder = Path(path).parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        raise FileNotFoundError(f"{field}={path!r}: no such file.{nearest(Path(path).name, siblings)}")
    content = Path(path).read_bytes()
    if not content.strip():
        raise ValueError(f"{field}={path!r}: the file is empty.")
    suffix = CONLL if suffix in conll.SUFFIXES and of_tokens else suffix
    parts = repr((READER_VERSION, suffix, astuple(file_format))).encode()
    digest = hashlib.sha256(parts + content).hexdigest()[:32]
    kept = Path(cache_dir or datasets.config.HF_DATASETS_CACHE, "hf_mixup", digest, "rows.arrow")
    if not kept.is_file():
        try:
            table = _read(content, suffix, file_format)
            # Refuses types that it does not know.
            Features.from_arrow_schema(table.schema)
        except (ValueError, pa.ArrowException, RecursionError) as error:
            raise ValueError(f"{field}={path!r}: cannot be read as {suffix[1:]}: {error}") from error
        if not table.num_rows:
            raise ValueError(f"{field}={path!r}: the file has no rows.")
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, as other processes may read it.
        with (
            write_whole(kept) as part,
            pa.OSFile(str(part), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=ROWS_AT_A_TIME)
    with pa.memory_map(str(kept)) as source:
        metadata = pa.ipc.open_stream(source).schema.metadata or {}
    for name, reason in json.loads(metadata.get(LEFT_OUT.encode(), "{}")).items():
        if name in needed:
            raise ValueError(f"{field}={path!r}: {reason}; expected values of one kind.")
        logger.warning("%s=%r: %s; it is left out.", field, path, reason)
    return Dataset.from_file(str(kept))


def _read(content: bytes, suffix: str, file_format: FileFormat) -> pa.Table:
    if suffix == ".parquet":
        return _decoded(pq.read_table(io.BytesIO(content)))
    text = _decode(content, file_format.encoding)
    if suffix == CONLL:
        return pa.table({name: pa.array(rows, pa.list_(pa.string())) for name, rows in conll.read_conll(text).items()})
    if suffix in DELIMITERS:
        columns = read_delimited(text, file_format.csv_delimiter or DELIMITERS[suffix], file_format.csv_quoting)
        return pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    rows = read_json(text)
    columns, left_out = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = _column(name, [row.get(name) for row in rows])
        except ValueError as error:
            left_out[name] = str(error)
    if rows and not columns:
        raise ValueError("; ".join(left_out.values()) or "its objects are empty.")
    return pa.table(columns).replace_schema_metadata({LEFT_OUT: json.dumps(left_out)})


def _decode(content: bytes, encoding: str | None) -> str:
    packed = next((advice for start, advice in PACKED_STARTS.items() if content.startswith(start)), None)
    if packed is not None:
        raise ValueError(f"it is no text.{packed}")
    try:
        text = content.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"line {line} is not {encoding or 'UTF-8'} (byte 0x{content[error.start]:02x}); "
            "give its encoding, such as encoding: cp1252 or utf-16."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"line {line} holds a NUL character; is it UTF-16? Give its encoding, encoding: utf-16.")
    return text.removeprefix("\ufeff")


def _decoded(table: pa.Table) -> pa.Table:
    """The table with plain values in the place of dictionary-encoded ones, which `datasets` does not know."""
    for place, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):
            table = table.set_column(place, column.name, table[column.name].cast(column.type.value_type))
    return table


# ---- JSON ----


def read_json(text: str) -> list[dict[str, Any]]:
    """The rows of a JSON file: a list of objects, or an object per line.

    Raises:
        ValueError: for text that is neither, with the line; for a name that an object holds twice.
    """
    rows = _parse(text, 1) if text.lstrip().startswith("[") else None
    if rows is None:
        # Only a line feed ends a line: texts may hold other separators.
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parse(line, number) for number, line in lines if line.strip()]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {_kind(row)}; expected a list of objects, or an object per line.")
    return rows


def _parse(text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        raise ValueError(f"{place}: {error.msg}; expected a list of objects, or an object per line.") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice in an object.")
    return found


def _column(name: str, values: list[Any]) -> pa.Array:
    """The values of a column as one type. Raises `ValueError` if they are of several kinds, with the rows."""
    kinds = {_kind(value): number for number, value in reversed([*enumerate(values, start=1)]) if value is not None}
    if len(kinds) > 1:
        found = ", ".join(f"{kind} in row {number}" for kind, number in sorted(kinds.items(), key=lambda item: item[1]))
        raise ValueError(f"column {name!r} holds {found}")
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise ValueError(f"column {name!r}: {error}") from error


def _kind(value: Any) -> str:
    kinds: Mapping[type, str] = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "null" if value is None else "an object")
