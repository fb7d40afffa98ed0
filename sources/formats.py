"""Files as rows: JSONL, JSON, CSV, TSV, Parquet, and data sets saved on disk; the first four also as .gz.

A row is its place and what stands there. A place is `FILE:LINE` in JSONL, CSV and TSV, and `FILE:row N` elsewhere, both
counted from 1. What the fields of a row mean is said in sources/fields.py.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sources.faults import DataError, Fault, first_line, short

Row = tuple[str, object]
LONGEST_LINE = 1_000_000  # characters; no question is as long, and a file without line ends would fill the memory
LARGEST_JSON = 1_000_000_000  # characters: JSON that is not by lines is read whole
HEAD = 1 << 16  # bytes by which a file is known
PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
UNPACK = {"bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd", "zip": "unzip"}
READ = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")
DATA_FILES = (*READ, ".txt", ".gz", ".zip", ".xz", ".bz2", ".zst", ".arrow")  # a file, and no set of the Hub


class Written(float):
    """A number of JSON that knows how it was written: 1.50 stays 1.50 as an answer."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Written:
        number = super().__new__(cls, text)
        number.text = text
        return number


def rows_of_path(path: Path, part: str, flag: str) -> Iterator[Row | Fault]:
    """The rows of a file or folder, or of a part of it: a split, or one of several lists.

    Raises DataError where it is of no format that is read, or has no such part.
    """
    try:
        if path.is_dir():
            yield from rows_of_folder(path, part, flag)
        else:
            yield from rows_of_file(path, part, flag)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{flag} {path}: it is damaged or cut off, and cannot be unpacked ({error}).") from error
    except OSError as error:
        raise DataError(f"{flag} {path}: it cannot be read ({error.strerror or first_line(error)}).") from error


def rows_of_file(path: Path, part: str, flag: str) -> Iterator[Row | Fault]:
    """The rows of a file, whose format its first bytes and the end of its name say."""
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb", buffering=HEAD))
        packed = file.peek(HEAD).startswith(b"\x1f\x8b")
        if packed:
            file = stack.enter_context(io.BufferedReader(gzip.GzipFile(fileobj=file), HEAD))  # type: ignore[type-var]
        head: bytes = file.peek(HEAD)
        is_parquet = head.startswith(b"PAR1") or ending == ".parquet"
        refuse_other_formats(path, flag, head, "" if is_parquet and not packed else ending)
        is_json = not is_parquet and ending not in (".csv", ".tsv") and is_whole_json(head, ending)
        if part and not is_json:
            raise DataError(f"{flag} {path}:{part}: this file has no parts; leave out the :{part}.")
        if is_parquet:
            yield from rows_of_parquet(path, flag)
        elif is_json:
            yield from rows_of_json(text_of(file), path, part, flag)
        elif ending in (".csv", ".tsv"):
            yield from rows_of_csv(text_of(file, newline=""), path, delimiter_of(head, ending))
        else:
            yield from rows_of_jsonl(text_of(file), path)


def text_of(file: Any, newline: str | None = None) -> io.TextIOWrapper:
    """UTF-8 with a byte-order mark or without; what is not UTF-8 comes as lone surrogates, so that it can be named."""
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def refuse_other_formats(path: Path, flag: str, head: bytes, ending: str) -> None:
    """Raise DataError for a file that is packed, or of another format, with what to do about it."""
    for mark, kind in PACKED.items():
        if head.startswith(mark):
            raise DataError(f"{flag} {path}: the file is packed ({kind}). Unpack it first: {UNPACK[kind]} {path}")
    if ending == ".parquet" or (ending and head.startswith(b"PAR1")):
        raise DataError(f"{flag} {path}: Parquet is packed in itself, and not read as .gz: gunzip -k {path}")
    if ending == ".arrow" or head.startswith(b"ARROW1"):
        raise DataError(
            f"{flag} {path}: it is an Arrow file, a part of a data set. Name the folder that save_to_disk has written."
        )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{flag} {path}:1: the file is UTF-16; it must be UTF-8: iconv -f UTF-16 -t UTF-8 {path} > new"
            f"{ending or '.jsonl'}"
        )


def undecoded(text: str, where: str) -> Fault | None:
    """What is wrong with a text that is not UTF-8; nothing with any other."""
    found = re.search("[\udc80-\udcff]", text)
    if found is None:
        return None
    byte = ord(found[0]) - 0xDC00
    said = f"the line is not UTF-8 (the byte 0x{byte:02x} in column {found.start() + 1})."
    return Fault(where, "encoding", f"{said} Save the file as UTF-8.")


def too_long(where: str) -> Fault:
    said = f"the line is longer than {LONGEST_LINE:,} characters. Each line holds one question."
    return Fault(where, "length", said)


# ---------------------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------------------


def rows_of_jsonl(file: io.TextIOWrapper, path: Path) -> Iterator[Row | Fault]:
    """One object a line; any line ends are taken, and empty lines passed over."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        where = f"{path}:{number}"
        if len(line) > LONGEST_LINE:
            while line and not line.endswith("\n"):
                line = file.readline(LONGEST_LINE)
            yield too_long(where)
        elif line.strip():
            yield undecoded(line, where) or row_of_line(line, where)


def row_of_line(line: str, where: str) -> Row | Fault:
    try:
        return where, json.loads(line, parse_float=Written)
    except RecursionError:
        return Fault(where, "depth", "the line has brackets within brackets, too deep to be read.")
    except ValueError as error:
        return Fault(where, "json", f"this line is not JSON ({error}). Each line holds one object.")


def is_whole_json(head: bytes, ending: str) -> bool:
    """Is a file one list of objects, or an object that holds one, and not an object a line?"""
    text = head.decode("utf-8-sig", "replace").lstrip()
    if re.match(r"\[\s*(\{|\]|$)|\{\s*[\r\n]\s*\"", text):
        return True
    first, *further = text.splitlines() or [""]
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):  # a line longer than the head, too
        return ending == ".json" and text.startswith("{")
    return isinstance(value, dict) and not any(line.strip() for line in further) and bool(lists_in(value))


def rows_of_json(file: io.TextIOWrapper, path: Path, part: str, flag: str) -> Iterator[Row | Fault]:
    """The rows of a list of objects, or of the one list, or the list `part`, that an object holds."""
    text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise DataError(f"{flag} {path}: it is too large to be read whole: jq -c '.[]' {path} > new.jsonl")
    for number, line in enumerate(text.split("\n") if re.search("[\udc80-\udcff]", text) else (), start=1):
        if fault := undecoded(line, f"{path}:{number}"):
            raise DataError(f"{fault.where}: {fault.text}")
    try:
        value = json.loads(text, parse_float=Written)
    except RecursionError:
        raise DataError(f"{flag} {path}: it has brackets within brackets, too deep to be read.") from None
    except json.JSONDecodeError as error:
        hint = " Is there one object a line? Then its name must end in .jsonl." if error.msg == "Extra data" else ""
        raise DataError(
            f"{path}:{error.lineno}: the file is not JSON ({error.msg} in column {error.colno}).{hint}"
        ) from error
    except ValueError as error:  # a whole number of thousands of digits
        raise DataError(f"{flag} {path}: the file cannot be read as JSON ({error}).") from error
    place = str(path)
    if isinstance(value, dict):
        lists = lists_in(value)
        if not lists:
            has = short(", ".join(value)) or "nothing"
            raise DataError(f"{path}:1: the file is one JSON object with {has}; it must hold a list of objects.")
        name = chosen(list(lists), part, path, flag)
        value, place = lists[name], f"{path}:{name}" if len(lists) > 1 else place
    elif part:
        raise DataError(f"{flag} {path}:{part}: this file is one list, without parts; leave out the :{part}.")
    for number, row in enumerate(value, start=1):
        yield f"{place}:row {number}", row


def lists_in(value: dict[str, Any]) -> dict[str, list[Any]]:
    """The lists of objects that an object holds; none of one that is a row itself, with its messages in a list."""
    lists = {name: each for name, each in value.items() if isinstance(each, list) and each and is_row(each[0])}
    return {name: each for name, each in lists.items() if not {"role", "from"} & each[0].keys()}


def is_row(value: object) -> bool:
    return isinstance(value, dict)


def chosen(parts: list[str], part: str, path: Path, flag: str) -> str:
    """The part of that name; without one, train, or the only one. Raises DataError where that says none."""
    if part in parts:
        return part
    if not part and ("train" in parts or len(parts) == 1):
        return "train" if "train" in parts else parts[0]
    listed = ", ".join(f"{path}:{each}" for each in parts[:20])
    what = f"there is no {part} in it" if part else "it has several parts"
    raise DataError(f"{flag} {path}: {what}; name one of {listed}.")


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def delimiter_of(head: bytes, ending: str) -> str:
    """What stands between the cells: a tab in .tsv; else a comma, or what the first line has in its place."""
    first = head.decode("utf-8", "replace").lstrip().splitlines()[:1]
    if ending == ".tsv" or not first or "," in first[0]:
        return "\t" if ending == ".tsv" else ","
    return next((each for each in "\t;" if each in first[0]), ",")


def rows_of_csv(file: io.TextIOWrapper, path: Path, delimiter: str) -> Iterator[Row | Fault]:
    """Rows under a head of names; a place is the line that a row begins in. Empty cells and rows are passed over."""
    csv.field_size_limit(LONGEST_LINE)

    def lines() -> Iterator[str]:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                fault = too_long(f"{path}:{reader.line_num + 1}")
                raise DataError(f"{fault.where}: {fault.text}")
            yield line

    reader: Any = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Fault(where, "csv", f"the row that begins here is no CSV ({error}). {QUOTES}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if fault := undecoded(delimiter.join(cells), where):
            yield fault
        elif not names:
            names = [cell.strip() for cell in cells]
            twice = next((name for name in names if name and names.count(name) > 1), "")
            if twice:
                raise DataError(f"{where}: the head of the file has the column {twice!r} twice; rename one of them.")
        elif len(cells) != len(names):
            said = f"the row has {len(cells)} columns, and the head of the file {len(names)}. {QUOTES}"
            yield Fault(where, "columns", said)
        else:
            yield where, {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}


QUOTES = 'A cell with a separator, a line end or a quote stands in quotes, and a quote in it is written "".'


def rows_of_parquet(path: Path, flag: str) -> Iterator[Row | Fault]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{flag} {path}: to read Parquet one more package is needed. Run: pip install pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1_024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"{flag} {path}: it cannot be read as Parquet ({first_line(error)}).") from error


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def rows_of_folder(path: Path, part: str, flag: str) -> Iterator[Row | Fault]:
    """The rows of what save_to_disk has written, or of the files of a folder whose names begin with the part's."""
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        yield from rows_of_saved(path, part, flag)
        return
    files = files_in(path) or files_in(path / "data")  # as a data set lies on the Hub
    if not files:
        raise DataError(f"{flag} {path}: it is a folder without a file of questions ({', '.join(READ[:5])}).")
    for file in files[chosen(list(files), part, path, flag)]:
        yield from rows_of_file(file, "", flag)


def files_in(folder: Path) -> dict[str, list[Path]]:
    """The files of questions by the part that they belong to: train of train-00000-of-00002.parquet and train.csv."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if file.is_file() and file.name.lower().endswith(READ) and not file.name.startswith("."):
            found.setdefault(re.split(r"[-.]", file.name)[0], []).append(file)
    return found


def rows_of_saved(path: Path, part: str, flag: str) -> Iterator[Row | Fault]:
    if importlib.util.find_spec("datasets") is None:
        raise DataError(
            f"{flag} {path}: to read a data set that was saved on disk one more package is needed. Run: pip install "
            "datasets"
        )
    import datasets

    try:
        table: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # of the library: a file is missing or damaged
        raise DataError(f"{flag} {path}: it cannot be read as a saved data set ({first_line(error)}).") from error
    place = str(path)
    if isinstance(table, datasets.DatasetDict):
        name = chosen(list(table), part, path, flag)
        table, place = table[name], f"{path}:{name}"
    elif part:
        raise DataError(f"{flag} {path}:{part}: this data set has no parts; leave out the :{part}.")
    for number, row in enumerate(table, start=1):
        yield f"{place}:row {number}", row
