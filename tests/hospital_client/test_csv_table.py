"""Reading columns of CSV files: what is the same however it is written, and where the errors point."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from hospital_client import csv_table
from hospital_client.csv_table import read_csv_table
from shared_model.errors import TemptError


def read(path: Path, content: bytes) -> tuple[list[int | None], list[str | None]]:
    """Columns `id` and `name` of a file, row by row."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    table = read_csv_table(path, ["id", "name"])
    (ids, id_of), (names, name_of) = table.integers("id"), table.texts("name")
    return [ids[i] if i >= 0 else None for i in id_of], [names[i] if i >= 0 else None for i in name_of]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
@pytest.mark.parametrize(
    "content",
    [
        b"id,name\n7,a b\n,\n8,\xc3\xa9\n",
        b"id,name\n7,a b\n,\n8,\xc3\xa9",
        b"id,name\r\n7,a b\r\n,\r\n8,\xc3\xa9\r\n",
        b"id,name\r7,a b\r,\r8,\xc3\xa9\r",
        b'\xef\xbb\xbf"id","name"\n"7","a b"\n"",""\n"8","\xc3\xa9"\n',
        b"\xef\xbb\xbfid,name\r\n7,a b\r\n,\r\n8,\xc3\xa9\r\n",
        b"name,x,x,id\na b,1,2,7\n,,,\n\xc3\xa9,,3,8\n",
        b'name,x,x,id\n a b ,"1\n,2",2, 7.0 \n \t,, , \n\xc3\xa9,"""",3,8\n',
        b"id,name\n\n7,a b\n\n\n,\n8,\xc3\xa9\n",
        b" id , name\n7,a b\n,\n8,\xc3\xa9\n",
    ],
)
def test_read_whichever_way_it_is_written_gives_the_same(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content) == ([7, None, 8], ["a b", None, "é"])


@pytest.mark.parametrize("size", [9, 13, 16, 33, 64])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_rows_that_are_cut_anywhere_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, end: bytes
) -> None:
    """Quotes, line ends within them and letters of several bytes, at every distance from a block's end."""
    monkeypatch.setattr(csv_table, "_BLOCK_BYTES", size)
    names = ["a", "é" * 9, "of\ntwo lines", 'a "quoted" one', "", 'ends with "', "\n\n", "x" * 50]
    quoted = [name.replace('"', '""') for name in names]
    between = end or b"\n"
    rows = [f'{i},"{name}"'.encode() for i, name in enumerate(quoted * 5)]
    for name in ("table.csv", "table.csv.gz"):
        ids, found = read(tmp_path / name, b"id,name" + between + between.join(rows) + end)
        assert ids == list(range(40))
        assert found == [name.strip() or None for name in names] * 5


def test_integers_beyond_the_precision_of_floats_are_exact(tmp_path: Path) -> None:
    content = b"id,name\n9223372036854775807.0,\n9223372036854775806,\n-9223372036854775808,\n0009,\n-0,\n+5.00,\n"
    ids, _ = read(tmp_path / "table.csv", content)
    assert ids == [2**63 - 1, 2**63 - 2, -(2**63), 9, 0, 5]


def test_texts_many_blocks_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_table, "_BLOCK_BYTES", 1 << 12)
    rows = 20_011
    content = b"id,name\n" + b"".join(b"%d,number %d\n" % (i, i % 797) for i in range(rows))
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    table = read_csv_table(path, ["name", "id"])
    names, position = table.texts("name")
    ids, id_position = table.integers("id")
    assert len(names) == 797
    assert ids == list(range(rows))
    assert (id_position[1:] - id_position[:-1] == 1).all()
    assert names[position[19_999]] == f"number {19_999 % 797}"


NOT_UTF8 = "holds bytes that are not UTF-8; expected UTF-8 text; save the file as UTF-8"
OPEN_QUOTE = "a quote is opened and never closed; close it, or export it again"
NUMBER = "expected a whole number of at most 64 bits; correct the row"


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header and rows; export it again"),
        (b"\n\nid,name\n7,a\n", "line 1: is empty; expected the header; remove the empty lines"),
        (b"id,name", "has a header but no row; expected a table with rows; export it again"),
        (b"id,name\r\n", "has a header but no row; expected a table with rows; export it again"),
        (b"id,nme\n7,a\n", "line 1: has no column name (it has 'nme'); expected id, name; add the column"),
        (b"id;name\n7;a\n", "line 1: has no column id; expected id, name; add the column"),
        (b"id,name,id\n7,a,7\n", "line 1: has column id 2 times; expected it once; remove the others"),
        (b"id,name\n7,a\n7,a,b\n", "line 3: has 3 fields, expected 2 as in the header; correct the row"),
        (b"id,name\n7,a\n7\n", "line 3: has 1 fields, expected 2 as in the header; correct the row"),
        (b"id,name\n7,a\xff\n", "line 2, column name: " + NOT_UTF8),
        (b"id,x,name\n7,a,b\n7,\xe9,b\n", "line 3, column x: " + NOT_UTF8),
        (b"id,name\n7,\xe2\x82", "line 2, column name: " + NOT_UTF8),
        (b"id,na\xffme\n7,a", "line 1, column 2: " + NOT_UTF8),
        (b"id,name\n7,a\n\0,b\n", "line 3, column id: holds a NUL byte; expected text; export the file again"),
        (b'id,name\n7,"a\n', "line 2, column name: " + OPEN_QUOTE),
        (b'id,name\n7,"a\n8,b\n9,c\n', "line 2, column name: " + OPEN_QUOTE),
        (b'id,name\n7,"a\n8,"b"\n', "line 2, column name: " + OPEN_QUOTE),
        (b'id,name\n"7,a\n8,"b"\n9,"c\n1,"d"\n', "line 2, column id: " + OPEN_QUOTE),
        (b'id,name\n6,"\n"\n7,"a"b"\n', "line 4: text follows a closing quote; expected a comma; correct the row"),
        (b'"id,name\n7,a\n', "line 1: " + OPEN_QUOTE),
        (b'id,name\n7,"a\n' + b"8,b\n" * 200_000, "line 2, column name: " + OPEN_QUOTE),
        (b"id,name\n7,a\n\n12.5,b\n", "line 4, column id: found '12.5', " + NUMBER),
        (b'id,name\n7,"a\n\nb"\nabc,b\n', "line 5, column id: found 'abc', " + NUMBER),
        (b"id,name\n9223372036854775808,b\n", "line 2, column id: found '9223372036854775808', " + NUMBER),
        (b"id,name\n1e3,b\n", "line 2, column id: found '1e3', " + NUMBER),
        (b"id,name\n1_000,b\n", "line 2, column id: found '1_000', " + NUMBER),
        ("id,name\n\u0664,b\n".encode(), "line 2, column id: found '\u0664', " + NUMBER),
        (
            b'id,name\n"7\n' + b"x" * 99 + b'",b\n',
            "line 2, column id: found '7\\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., " + NUMBER,
        ),
    ],
)
def test_read_unsound_table_names_file_line_and_column(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    separator = ": "
    with pytest.raises(TemptError, match=f"^{re.escape(str(tmp_path / name) + separator + message)}$"):
        read(tmp_path / name, content)


def test_required_empty_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"id,name\n7,a\n  ,b\n")
    table = read_csv_table(path, ["id"])
    with pytest.raises(TemptError, match=r"line 3, column id: is empty; expected a number; correct the row$"):
        table.required("id", table.integers("id")[1], "a number")


@pytest.mark.parametrize("cut", [1, 4, 8, 100, 2_000])
def test_read_truncated_gzip_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "table.csv.gz"
    whole = gzip.compress(b"id,name\n" + b"".join(b"%d,%s\n" % (i, os.urandom(9).hex().encode()) for i in range(9_000)))
    path.write_bytes(whole[:-cut])
    with pytest.raises(
        TemptError, match=r"table\.csv\.gz: the gzip data are damaged or cut short .*; fetch the file again$"
    ):
        read_csv_table(path, ["id"])


def test_read_what_is_no_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(b"id,name\n7,a\n")
    with pytest.raises(
        TemptError, match=r"is not gzip, as its name says; expected a gzip file; rename it or fetch it again$"
    ):
        read_csv_table(path, ["id"])
    path.write_bytes(gzip.compress(b"id,name\n7,a\n") + b"and more")
    with pytest.raises(TemptError, match="the gzip data are damaged"):
        read_csv_table(path, ["id"])


def test_read_gzip_of_several_members_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"id,name\n7,a\n") + gzip.compress(b"8,b\n"))
    assert read_csv_table(path, ["id"]).rows == 2
