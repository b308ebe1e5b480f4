"""What a file is that should be a table of CSV, and is not, by how it begins; and what to do about it."""

from __future__ import annotations

import re

_UTF_32 = "UTF-32 text; save it as UTF-8"
_UTF_16 = "UTF-16 text; save it as UTF-8"
_SHEET = "a spreadsheet; export it as CSV"
_POINTER = "a pointer of {}, which stands for the file; fetch the file with `{}`"
_EXPORT = "export the table as CSV"

# The first that fits. A pattern is looked for at the beginning alone.
_KINDS: dict[bytes, str] = {
    rb"\x1f\x8b": "gzip data; name it .csv.gz, or decompress it once more",
    rb"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or export it as CSV",
    rb"PAR1": "a Parquet file; export it as CSV",
    rb"ORC|ARROW1|FEA1|Obj\x01": f"a file of columns (ORC, Arrow, Feather or Avro); {_EXPORT}",
    rb"BZh[1-9]": "bzip2 data; decompress it",
    rb"\xfd7zXZ\0": "xz data; decompress it",
    rb"\x28\xb5\x2f\xfd": "zstd data; decompress it",
    rb"\x04\x22\x4d\x18": "lz4 data; decompress it",
    rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07": "an archive (7z or RAR); unpack it",
    rb"(?s:.{257})ustar": "a tar archive; unpack it",
    rb"\xd0\xcf\x11\xe0": _SHEET,
    rb"\{\\rtf": f"a text document (RTF); {_EXPORT}",
    rb"%PDF": "a PDF document; export the table as CSV",
    rb"SQLite format 3\0|(?s:.{4})Standard (Jet|ACE) DB": f"a database; {_EXPORT}",
    rb"\0{12}\xc2\xea\x81\x60|HEADER RECORD\*{7}": f"a file of SAS; {_EXPORT}",
    rb"\$FL[23]": f"a file of SPSS; {_EXPORT}",
    rb"<stata_dta>|[\x71-\x73][\x01\x02]\x01\0": f"a file of Stata; {_EXPORT}",
    rb"RD[AX][2-5]\n|[XAB]\n\0\0\0[\x02-\x05]": f"a file of R; {_EXPORT}",
    rb"\x89HDF": f"an HDF5 file; {_EXPORT}",
    rb"\x80[\x02-\x05][\x95}\]c(]": f"a pickle of Python; {_EXPORT}",
    rb"\xff\xfe\0\0|\0\0\xfe\xff|[^\0]\0\0\0|\0\0\0[^\0]": _UTF_32,
    rb"\xff\xfe|\xfe\xff|[^\0]\0|\0[^\0]": _UTF_16,
    rb"\s*version https://git-lfs\.github\.com/": _POINTER.format("Git LFS", "git lfs pull"),
    rb"\s*(\.\./)*(\.git|/)\S*annex/objects/": _POINTER.format("git-annex", "git annex get"),
    rb"\s*<": "a web page or XML, such as a page that asks for a login; fetch the file again",
    rb'\s*(\{\s*["}]|\[\s*[\[{\]])': f"JSON; {_EXPORT}",
}
_PATTERNS = [(re.compile(pattern), kind) for pattern, kind in _KINDS.items()]

# Texts that could be a header, where the columns that are looked for are not among their words.
_NO_HEADERS: dict[str, str] = {
    r"sep=|\"sep=": "is a note for a spreadsheet program; expected the header; remove the line",
    r"(--|/\*|(CREATE|INSERT|DROP|SET|COPY|BEGIN|USE|LOCK|ALTER|PRAGMA|SELECT)\b.*[\s;(])": "is SQL; expected the "
    f"header of a CSV file; {_EXPORT}",
    r"(#|//|%|;;)": "is a comment; expected the header; remove the lines above it",
    r"[-+|= ]+$": f"is a ruled line; expected the header of a CSV file; {_EXPORT}",
}
_HEADER_PATTERNS = [(re.compile(pattern, re.IGNORECASE), what) for pattern, what in _NO_HEADERS.items()]


def other_kind(beginning: bytes) -> str | None:
    """What a file is instead of CSV, and what to do about it; None if it may be CSV."""
    return next((kind for pattern, kind in _PATTERNS if pattern.match(beginning)), None)


def no_header(line: str) -> str | None:
    """What the first line of a text is instead of a header, and what to do about it; None if it may be one."""
    if not line.strip():
        return "is blank; expected the header; remove the lines above it"
    return next((what for pattern, what in _HEADER_PATTERNS if pattern.match(line.strip())), None)
