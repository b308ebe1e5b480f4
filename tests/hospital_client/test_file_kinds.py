"""What is no table of CSV is told by what it is, and what to do: plain, compressed, and under the other's name."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import pickle
from pathlib import Path

import pytest

from hospital_client.csv_table import read_csv_table
from shared_model.errors import TemptError

CASES = [
    ("id,name\n7,a\n".encode("utf-32"), "expected CSV, found UTF-32 text; save it as UTF-8"),
    ("id,name\n7,a\n".encode("utf-32-le"), "expected CSV, found UTF-32 text; save it as UTF-8"),
    ("id,name\n7,a\n".encode("utf-32-be"), "expected CSV, found UTF-32 text; save it as UTF-8"),
    (codecs.BOM_UTF32_BE + "id,name\n7,a\n".encode("utf-32-be"), "expected CSV, found UTF-32 text; save it as UTF-8"),
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "expected CSV, found a pointer of Git LFS, which stands for the file; fetch the file with `git lfs pull`",
    ),
    (
        b"../.git/annex/objects/x1/Qf/SHA256E-s12--4d7a.csv/SHA256E-s12--4d7a.csv\n",
        "expected CSV, found a pointer of git-annex, which stands for the file; fetch the file with `git annex get`",
    ),
    (b"/annex/objects/SHA256E-s12--4d7a.csv\n", "expected CSV, found a pointer of git-annex, which stands for"),
    (b'{"id": 7, "name": "a"}\n', "expected CSV, found JSON; export the table as CSV"),
    (b'[{"id": 7, "name": "a"}]', "expected CSV, found JSON; export the table as CSV"),
    (b'\xef\xbb\xbf\n [\n [7, "a"]]', "expected CSV, found JSON; export the table as CSV"),
    (b"SQLite format 3\0\x10\0", "expected CSV, found a database; export the table as CSV"),
    (b"\0\x01\0\0Standard Jet DB\0", "expected CSV, found a database; export the table as CSV"),
    (b"RDX3\nX\n\0\0\0\x03", "expected CSV, found a file of R; export the table as CSV"),
    (b"X\n\0\0\0\x03\0\x04", "expected CSV, found a file of R; export the table as CSV"),
    (b"\0" * 12 + b"\xc2\xea\x81\x60", "expected CSV, found a file of SAS; export the table as CSV"),
    (b"<stata_dta><header>", "expected CSV, found a file of Stata; export the table as CSV"),
    (b"$FL2@(#) SPSS", "expected CSV, found a file of SPSS; export the table as CSV"),
    (pickle.dumps({"id": [7]}), "expected CSV, found a pickle of Python; export the table as CSV"),
    (b"ARROW1\0\0", "expected CSV, found a file of columns (ORC, Arrow, Feather or Avro); export the table as CSV"),
    (b"patient.csv".ljust(257, b"\0") + b"ustar\0", "expected CSV, found a tar archive; unpack it"),
    (b"7z\xbc\xaf\x27\x1c\0\x04", "expected CSV, found an archive (7z or RAR); unpack it"),
    (bz2.compress(b"id,name\n"), "expected CSV, found bzip2 data; decompress it"),
    (b"sep=,\nid,name\n7,a\n", "line 1: is a note for a spreadsheet program; expected the header; remove the line"),
    (b'"sep=;"\nid;name\n7;a\n', "line 1: is a note for a spreadsheet program; expected the header; remove the line"),
    (b"# of 2014, by ward\nid,name\n7,a\n", "line 1: is a comment; expected the header; remove the lines above it"),
    (b"-- dump of eicu\nINSERT INTO t VALUES (7,'a');\n", "line 1: is SQL; expected the header of a CSV file; export"),
    (b"CREATE TABLE t (id int, name text);\n", "line 1: is SQL; expected the header of a CSV file; export the table"),
    (b"SET statement_timeout = 0;\n", "line 1: is SQL; expected the header of a CSV file; export the table as CSV"),
    (b"+----+------+\n| id | name |\n", "line 1: is a ruled line; expected the header of a CSV file; export the"),
    (b"  \nid,name\n7,a\n", "line 1: is blank; expected the header; remove the lines above it"),
    (
        b"'id','name'\n7,'a'\n",
        "line 1: has \"'id'\", expected id; export the table again with plain names, or names in",
    ),
    ("“id”,“name”\n7,a\n".encode(), "line 1: has '“id”', expected id; export the table again with plain names"),
    (b"[id],[name]\n7,a\n", "line 1: has '[id]', expected id; export the table again with plain names, or names in"),
    (b"`id`,`name`\n7,a\n", "line 1: has '`id`', expected id; export the table again with plain names, or names in"),
    (b"7,a\n8,b\n", "line 1: holds values; expected a header with id, name; add it above"),
    (lzma.compress(b"id,name\n"), "expected CSV, found xz data; decompress it"),
]
SOUND = [
    b"id,name\n7,a\n",
    b"note,id,name\n{x},7,a\n",
    b"[x],id,name\n1,7,a\n",
    b"#,id,name\n1,7,a\n",
    b"set,id,name\nb,7,a\n",
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("content", "message"), CASES)
def test_what_is_no_table_was_told_as_a_missing_column(
    tmp_path: Path, content: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / ("table.csv.gz" if packed else "table.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(TemptError) as error:
        read_csv_table(path, ["id", "name"])
    assert str(error.value).startswith(f"{path}: {message}") and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(("content", "message"), [case for case in CASES if "found" in case[1]])
def test_it_is_told_as_well_under_the_name_of_gzip(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(content)
    with pytest.raises(TemptError) as error:
        read_csv_table(path, ["id", "name"])
    assert str(error.value).startswith(f"{path}: {message.replace('expected CSV', 'expected gzip, as its name says')}")


@pytest.mark.parametrize("content", SOUND)
def test_odd_names_of_columns_beside_those_that_are_read_are_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    assert read_csv_table(tmp_path / "table.csv", ["id", "name"]).integers("id")[0] == [7]
