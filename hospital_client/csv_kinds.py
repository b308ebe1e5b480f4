"""What a file is that is no CSV, by its first bytes, and what to do about it, whatever its name says.

Only what no table of text begins with is judged here. What may be a header is read as one; `csv_header.py` says what
is wrong with it.
"""

from __future__ import annotations

import re

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_MARKUP = "a web page or XML, such as a page that asks for a login; fetch the file again"
_STATISTICS = "data of SAS, SPSS or Stata; export the table as CSV"
_COLUMNS = "a table in a binary form (Arrow, ORC, Avro or HDF5); export it as CSV"
_UTF_16 = "UTF-16 text; save it as UTF-8"
_UTF_32 = "UTF-32 text; save it as UTF-8"

# Of the first bytes, white space before them left out; the first that fits is meant.
_KINDS = [
    (re.compile(form, re.DOTALL), kind)
    for form, kind in (
        (rb"\x1f\x8b", "gzip data; name it .csv.gz, or decompress it once more"),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive or a spreadsheet; unpack it, or export it as CSV"),
        (rb"7z\xbc\xaf|Rar!\x1a|.{257}ustar", "an archive; unpack it"),
        (rb"BZh", "bzip2 data; decompress it"),
        (rb"\xfd7zXZ\0", "xz data; decompress it"),
        (rb"\x28\xb5\x2f\xfd", "zstd data; decompress it"),
        (rb"\x04\x22\x4d\x18", "lz4 data; decompress it"),
        (rb"\x1f\x9d", "data of compress (.Z); decompress it"),
        (rb"-----BEGIN PGP|Salted__", "encrypted data; decrypt it"),
        (rb"version https://git-lfs\.", "a Git LFS pointer in the table's place; fetch the table with `git lfs pull`"),
        (
            rb"(\.\./)*(\.git)?/?annex/objects/",
            "a git-annex pointer in the table's place; fetch the table with `git annex get`",
        ),
        (rb"PAR1", "a Parquet file; export it as CSV"),
        (rb"ARROW1|FEA1|ORC.{0,200}?\0|Obj\x01|\x89HDF", _COLUMNS),
        (rb"\0{12}\xc2\xea\x81\x60|HEADER RECORD\*|\$FL[23]@|<stata_dta>", _STATISTICS),
        (rb"RD[ABX][23]\n|X\n\0", "data of R; export the table as CSV"),
        (rb"SQLite format 3|\0\x01\0\0Standard |PGDMP", "a database; export its table as CSV"),
        (rb"\xd0\xcf\x11\xe0", "a spreadsheet; export it as CSV"),
        (rb"%PDF", "a PDF document; export the table as CSV"),
        (rb"\{\\rtf", "a document of a word processor; export the table as CSV"),
        (rb"<", _MARKUP),
        (rb'\{\s*["}]|\[\s*[\[{"\]]', "JSON; export the table as CSV"),
        (rb"\+-[+-]*\s", "a table as a database's client prints it; export it as CSV"),
        (rb"\0{4}", "NUL bytes, such as a copy that was cut off leaves; fetch the file again"),
        (rb"\xff\xfe\0\0|\0\0\xfe\xff|[^\0]\0\0\0|\0\0\0[^\0]", _UTF_32),
        (rb"\xff\xfe|\xfe\xff|[^\0]\0|\0[^\0]", _UTF_16),
    )
]
_STATEMENT = re.compile(
    rb"(CREATE|DROP|ALTER|LOCK|TRUNCATE)\s+(TABLES?|DATABASE|SCHEMA)\s|INSERT\s+INTO\s|COPY\s+\S+\s*\(|PRAGMA\s+\w+\s*="
    rb"|SET\s+\w+\s*=|SET\s+NAMES\s|USE\s+\S+;|BEGIN(\s+TRANSACTION)?;|START\s+TRANSACTION;",
    re.IGNORECASE,
)


def other_kind(beginning: bytes) -> str | None:
    """What a file is instead of CSV, and what to do about it; None if it may be CSV.

    Args:
        beginning: of the file, thousands of bytes of it if it has as many.

    >>> other_kind(b'[{"patientunitstayid": 141168}]')
    'JSON; export the table as CSV'
    """
    text = beginning.removeprefix(BYTE_ORDER_MARK).lstrip()
    if kind := next((kind for form, kind in _KINDS if form.match(text)), None):
        return kind
    return "SQL, such as a dump of a database; export the table as CSV" if _is_sql(text) else None


def _is_sql(text: bytes) -> bool:
    """Whether the first thing behind comments is a statement."""
    while text.startswith((b"--", b"/*")):
        text = text.partition(b"\n" if text.startswith(b"--") else b"*/")[2].lstrip(b"; \t\r\n")
    return bool(_STATEMENT.match(text))
