"""Reading columns of CSV files: what is the same however it is written, and where the errors point."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hospital_client import csv_blocks
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
        b"ID,Name\n7,a b\n,\n8,\xc3\xa9\n",
        b"ID,id,NAME\nx,7,a b\nx,,\nx,8,\xc3\xa9\n",
        b"id,name\r\n7,a b\n,\r8,\xc3\xa9\r\n\n",
        b"id,name\n7,a b\n NA , null\n8,\xc3\xa9\n",
        b'id,name\n7,a b\n"nan","NONE"\n8,\xc3\xa9\n',
    ],
)
def test_read_whichever_way_it_is_written_gives_the_same(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content) == ([7, None, 8], ["a b", None, "é"])


def by_the_letter(content: bytes) -> list[list[str]] | None:
    """The rows behind the header as Python's own reader has them in strict mode; None for an unsound table."""
    try:
        text = content.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (csv.Error, UnicodeDecodeError):
        return None
    return rows[1:] if len({len(row) for row in rows}) == 1 and "\0" not in text and len(rows) > 1 else None


def rows_of(path: Path, content: bytes) -> list[list[str]] | None:
    """The same by the reader under test: each field as it stands in the file."""
    path.write_bytes(content)
    try:
        table = read_csv_table(path, ["id", "name"])
    except TemptError:
        return None
    columns = [[column.texts[place] for place in column.position] for column in table.columns.values()]
    return [list(row) for row in zip(*columns, strict=True)]


_PIECES = st.sampled_from(["a", "b ", "\n", "\r\n", "\r", '""', ",", "é", "\ufeff"])
_FIELDS = st.one_of(
    st.lists(st.sampled_from(["a", "b ", "é", "\ufeff"]), max_size=4).map("".join),
    st.lists(_PIECES, max_size=6).map(lambda pieces: f'"{"".join(pieces)}"'),
    st.sampled_from(['5" pipe', 'a"', ' "a"', "NA"]),
)
_ODD = st.sampled_from(['"a"x', '"a', '"a"b"', "a,b", '"a\nb"x', '""x', "\0"])
_LINES = st.lists(
    st.tuples(st.one_of(*[_FIELDS] * 20, _ODD), _FIELDS, st.sampled_from(["\n", "\r\n", "\r", "\n\n"])), max_size=12
)


@given(lines=_LINES, block=st.integers(1, 60), header=st.integers(1, 20), tail=st.integers(1, 20), end=st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_table_cut_anywhere_is_read_as_pythons_own_reader_has_it(
    lines: list[tuple[str, str, str]], block: int, header: int, tail: int, end: bool
) -> None:
    text = "id,name\n" + "".join(f"{first},{second}{line_end}" for first, second, line_end in lines)
    content = (text if end else text.rstrip("\r\n")).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_blocks, "_BLOCK_BYTES", block)
        patch.setattr(csv_blocks, "_HEADER_BYTES", header)
        patch.setattr(csv_blocks, "_TAIL_BYTES", tail)
        expected, found = by_the_letter(content), rows_of(Path(folder) / "table.csv", content)
    event("refused" if expected is None else "read")
    assert found == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_byte_of_a_table_as_the_first_of_a_block_is_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """Quotes, line ends within them and letters of several bytes, at every distance from a block's end."""
    names = ["a", "é" * 9, "of\r\ntwo lines", 'a "quoted" one', "", 'ends with "', "\r\n\n\r", "x" * 50]
    quoted = [name.replace('"', '""') for name in names]
    content = end.join([b"id,name", *(f'{i},"{name}"'.encode() for i, name in enumerate(quoted))])
    for name in ("table.csv", "table.csv.gz"):
        for size in range(1, len(content) + 2):
            monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", size)
            ids, found = read(tmp_path / name, content + end if size % 2 else content)
            assert ids == list(range(8))
            assert found == [text.strip() or None for text in names]


@pytest.mark.parametrize("shift", [-1, 0, 1])
@pytest.mark.parametrize("block", [1 << 20, 1 << 23])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_a_quoted_cr_as_the_last_byte_of_a_block_lost_its_lf(tmp_path: Path, name: str, block: int, shift: int) -> None:
    """At the real sizes of blocks: the reader's own of 1 MiB before, and ours."""
    before = b"id,name,note\n" + b"6,b,\n" * (block // 5 - 20_000)
    row = b'7,"401.9\r\nI10",\n'
    fill = block - 1 + shift - row.index(b"\r") - len(before) - len(b"6,b,\n")
    content = before + b"6,b," + b"x" * fill + b"\n" + row + b"6,b,\n" * 300_000
    assert content[block - 1 + shift : block + 1 + shift] == b"\r\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    assert read_csv_table(path, ["name"]).texts("name")[0] == ["401.9\r\nI10", "b"]


def test_inch_marks_beside_notes_of_many_lines_are_read_in_a_file_of_many_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 1 << 12)
    rows = [b'%d,5" pipe\n' % i if i % 997 == 0 else b'%d,"a note\nof lines"\n' % i for i in range(5_000)]
    ids, names = read(tmp_path / "table.csv", b"id,name\n" + b"".join(rows))
    assert ids == list(range(5_000))
    assert [i for i, name in enumerate(names) if name == '5" pipe'] == list(range(0, 5_000, 997))
    assert names.count("a note\nof lines") == 5_000 - 6
    with pytest.raises(TemptError, match=r"line 10001: text follows a closing quote; expected a comma"):
        read(tmp_path / "table.csv", b"id,name\n" + b'1,"a note\nof lines"\n' * 4_999 + b'1,5" pipe\n1,"5"x\n')


@pytest.mark.parametrize("note", [b"x" * 3_000_000, b"a line\n" * 400_000, b'an "" inch\r\n' * 200_000])
def test_notes_longer_than_any_limit_of_a_reader_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: bytes
) -> None:
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 1 << 16)
    ids, names = read(tmp_path / "table.csv", b'id,name,note\n7,a,"' + note + b'"\n8,b,\n')
    assert (ids, names) == ([7, 8], ["a", "b"])
    ids, names = read(tmp_path / "table.csv", b'id,name,note\n7,5" a,"' + note + b'"\n8,b,\n')
    assert (ids, names) == ([7, 8], ['5" a', "b"])


def test_a_row_without_an_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_blocks, "MOST_BYTES", 1 << 20)
    with pytest.raises(
        TemptError, match=r"line 3: begins a row of more than 1 MiB; expected an end of it; look for an"
    ):
        read(tmp_path / "table.csv", b'id,name\n6,a\n7,"' + b"x\n" * 20_000_000)


def test_what_is_wrong_in_the_earliest_line_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(csv_blocks, "_HEADER_BYTES", 1 << 4)
    rows = [b"%d,a\n" % i for i in range(4_000)]
    rows[100], rows[101], rows[3_000] = b"1\n", b'1,"a"b\n', b"1,\xff\n"
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"id,name\n" + b"".join(rows))[:-4])
    with pytest.raises(TemptError, match="line 102: has 1 fields"):
        read_csv_table(path, ["id"])


def test_integers_beyond_the_precision_of_floats_are_exact(tmp_path: Path) -> None:
    content = b"id,name\n9223372036854775807.0,\n9223372036854775806,\n-9223372036854775808,\n0009,\n-0,\n+5.00,\n"
    ids, _ = read(tmp_path / "table.csv", content)
    assert ids == [2**63 - 1, 2**63 - 2, -(2**63), 9, 0, 5]


def test_texts_many_blocks_keep_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 1 << 12)
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
SEPARATED = "line 1: its columns are separated by {}; expected commas; export the table again with commas"
PAGE = "a web page or XML, such as a page that asks for a login; fetch the file again"
AFTER_QUOTE = "text follows a closing quote; expected a comma; correct the row"
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
        (b"key,x\n7,a\n", "line 1: has no column id (it has 'key, x'); expected id, name; add the column"),
        (b"id;name\n7;a\n", SEPARATED.format("';'")),
        (b'"id";"name"\n7;"a, b"\n', SEPARATED.format("';'")),
        (b"id\tname\r\n7\ta\r\n", SEPARATED.format("a tab")),
        (b'"id"\t"name"\r\n7\t"a"\r\n', SEPARATED.format("a tab")),
        (b"\xef\xbb\xbfid|name|note, long\n7|a|\n", SEPARATED.format("'|'")),
        (b"ID,id ,Id\n7,a,7\n", "line 1: has no column name (it has 'ID, id, Id'); expected id, name; add the column"),
        (b"ID,Id,NAME\n7,7,a\n", "line 1: has column id 2 times; expected it once; remove the others"),
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
        (b'id,name\n6,"\n"\n7,"a"b"\n', "line 4: " + AFTER_QUOTE),
        (b'id,name\n7,"401.9"x\n8,b\n', "line 2: " + AFTER_QUOTE),
        (b'id,name\n7,"401.9"x\n\n8,b\n', "line 2: " + AFTER_QUOTE),
        (b'id,name\n7,"401.9"x\n8,"401.9"y\n', "line 2: " + AFTER_QUOTE),
        (b'id,name\n7,a\n8,"401.9" \n', "line 3: " + AFTER_QUOTE),
        (b'id,name\n7,a\n8,"401.9"x', "line 3: " + AFTER_QUOTE),
        (b'id,name\n7,""x\n', "line 2: " + AFTER_QUOTE),
        (b'id,name\n7,a\r8,"401.9"x\r9,b\r', "line 3: " + AFTER_QUOTE),
        (
            b'id,name\n6,a\n7,"401.9\r\nI10"x\n',
            "line 4: text follows a closing quote (of a field that begins in line 3); expected a comma; correct the"
            " row",
        ),
        (b'id,name\n7,a\n8,"b\nc","d"e\n', "line 4: " + AFTER_QUOTE),
        (b'id,name\n6,5" pipe\n"\n8,b\n', "line 3, column id: " + OPEN_QUOTE),
        (b'id,name\n6,"a\nb","c\n', "line 3, column 3: " + OPEN_QUOTE),
        (b"id,name\n7,a\n \n8,b\n", "line 3: has 1 fields, expected 2 as in the header; correct the row"),
        (
            b"id,name\n7,a\n\xef\xbb\xbfid,name\n",
            "line 3, column id: is the header again; expected it once; remove the line",
        ),
        (
            b"id,name\n7," + b"x" * 140_000 + b"\n8\n",
            "line 3: has 1 fields, expected 2 as in the header; correct the row",
        ),
        (
            b'id,name\n7,"' + b"x y\n" * 40_000 + b'"\n8\n',
            "line 40003: has 1 fields, expected 2 as in the header; correct the row",
        ),
        (b"<!DOCTYPE html>\n<html><body>id,name</body></html>\n", "expected CSV, found " + PAGE),
        (b'\xef\xbb\xbf\n  <html lang="en">', "expected CSV, found " + PAGE),
        (b'  <html lang="en">\n</html>\n', "expected CSV, found " + PAGE),
        (b"PK\x03\x04\x14\0", "expected CSV, found a zip archive or a spreadsheet; unpack it, or export it as CSV"),
        (b"PAR1\x15\x04", "expected CSV, found a Parquet file; export it as CSV"),
        (
            gzip.compress(b"id,name\n7,a\n", mtime=0),
            "expected CSV, found gzip data; name it .csv.gz, or decompress it once more",
        ),
        ("id,name\n7,a\n".encode("utf-16"), "expected CSV, found UTF-16 text; save it as UTF-8"),
        (
            codecs.BOM_UTF16_BE + "id,name\n7,a\n".encode("utf-16-be"),
            "expected CSV, found UTF-16 text; save it as UTF-8",
        ),
        ("id,name\n7,a\n".encode("utf-16-le"), "expected CSV, found UTF-16 text; save it as UTF-8"),
        ("id,name\n7,a\n".encode("utf-16-be"), "expected CSV, found UTF-16 text; save it as UTF-8"),
        (b'"id,name\n7,a\n', "line 1: " + OPEN_QUOTE),
        (b'id,name\n7,"a\n' + b"8,b\n" * 200_000, "line 2, column name: " + OPEN_QUOTE),
        (b"id,name\n7,a\n\n12.5,b\n", "line 4, column id: found '12.5', " + NUMBER),
        (b'id,name\n7,"a\n\nb"\nabc,b\n', "line 5, column id: found 'abc', " + NUMBER),
        (b"id,name\n9223372036854775808,b\n", "line 2, column id: found '9223372036854775808', " + NUMBER),
        (b"id,name\ninf,b\n", "line 2, column id: found 'inf', " + NUMBER),
        (b"id,name\n1e400,b\n", "line 2, column id: found '1e400', " + NUMBER),
        (b"id,name\n-9223372036854775809,b\n", "line 2, column id: found '-9223372036854775809', " + NUMBER),
        (b"id,name\n" + b"9" * 5000 + b",b\n", "line 2, column id: found '" + "9" * 36 + "..., " + NUMBER),
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
    path.write_bytes(b"id,name\n7,a\n Null ,b\n")
    table = read_csv_table(path, ["id"])
    with pytest.raises(TemptError, match=r"line 3, column id: found 'Null', expected a number; correct the row$"):
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
    path.write_bytes(b"<!DOCTYPE html>\n<title>Log in</title>\n")
    with pytest.raises(TemptError, match=f"expected gzip, as its name says, found {PAGE}$"):
        read_csv_table(path, ["id"])
    path.write_bytes(gzip.compress(b"id,name\n7,a\n") + b"and more")
    with pytest.raises(TemptError, match="the gzip data are damaged"):
        read_csv_table(path, ["id"])


def test_read_gzip_of_several_members_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"id,name\n7,a\n") + gzip.compress(b"8,b\n"))
    assert read_csv_table(path, ["id"]).rows == 2


_REFUSE = """
import sys
from pathlib import Path
from hospital_client.csv_table import read_csv_table
from shared_model.errors import TemptError

try:
    read_csv_table(Path(sys.argv[1]), ["id", "name"])
except TemptError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""


@pytest.mark.slow
def test_a_process_that_ended_while_pyarrow_still_parsed_was_aborted(tmp_path: Path) -> None:
    """One in 25, after the right line: a thread of pyarrow's let go of memory of Python's when Python was gone."""
    rows = [b'%d,"name %d","%s"\n' % (i, i, b"text" * 20) for i in range(200_000)]
    rows[3] = b"7,8\n"
    (tmp_path / "ragged.csv").write_bytes(b"id,name,x\n" + b"".join(rows))
    rows[3] = b"7,a,b\n"
    packed = gzip.compress(b"id,name,x\n" + b"".join(rows), 1)
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    for name, message in (("ragged.csv", "line 5: has 2 fields"), ("cut.csv.gz", "the gzip data are damaged")):
        for _ in range(20):
            command = [sys.executable, "-c", _REFUSE, str(tmp_path / name)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 2, (done.returncode, done.stderr)
            assert len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr
