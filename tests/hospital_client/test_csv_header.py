"""A table that is nearly right is told with what was found, or read as the plain one; nothing is guessed."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from hospital_client.csv_table import read_csv_table
from shared_model.errors import TemptError

BELOW = "line 1: is {}, and the header stands in line {}; expected it first; remove what is above it, or move it up"
AROUND = "line 1: has {} for column {}; expected the name alone; export the table again without the marks around it"
VALUES = "line 1: has the value {} where names are expected; expected a header with id, name; put it above the rows"
ONE_TEXT = "line 1: is one text in quotes; expected quotes around each name or none; export the table again"
AGAIN = "line {}, column {}: is the header again; expected it once; remove the line"
NO_COLUMN = "line 1: has no column {} (it has {}); expected id, name; add the column"

NEARLY: dict[str, tuple[str, str]] = {
    "Excel's separator": ("sep=,\nid,name\n7,a\n", BELOW.format("'sep=,'", 2)),
    "Excel's separator in quotes": ('"sep=,"\r\nid,name\r\n7,a\r\n', BELOW.format("'\"sep=,\"'", 2)),
    "comments": ("# of 2026, by me\n# 7|8|9\nid,name\n7,a\n", BELOW.format("'# of 2026, by me'", 3)),
    "comments of SQL": ("-- by me\nid,name\n7,a\n", BELOW.format("'-- by me'", 2)),
    "a title": ("Patients; 2026; x\n\nID,Name\n7,a\n", BELOW.format("'Patients; 2026; x'", 3)),
    "a blank line": ("  \nid,name\n7,a\n", BELOW.format("'  '", 2)),
    "empty fields": (',,\n"name","x","id"\na,1,7\n', BELOW.format("',,'", 2)),
    "rows before the header": ("7,a\n8,b\nid,name\n9,c\n", BELOW.format("'7,a'", 3)),
    "a header in a comment": ("#id,name\n7,a\n", AROUND.format("'#id'", "id")),
    "single quotes": ("'id','name'\n'7','a'\n", AROUND.format("\"'id'\"", "id")),
    "single quotes around one name": ("id,'Name'\n7,'a'\n", AROUND.format("\"'Name'\"", "name")),
    "typographic quotes": ("“id”,“name”\n“7”,“a”\n", AROUND.format("'“id”'", "id")),
    "low quotes": ("„id“,„name“\n7,a\n", AROUND.format("'„id“'", "id")),
    "quotes of MySQL": ("`id`,`name`\n7,a\n", AROUND.format("'`id`'", "id")),
    "brackets of SQL Server": ("[id],[name]\n7,a\n", AROUND.format("'[id]'", "id")),
    "doubled quotes": ('"""id""","""name"""\n7,a\n', AROUND.format("'\"id\"'", "id")),
    "two byte order marks": ("\ufeff\ufeffid,name\n7,a\n", AROUND.format(r"'\ufeffid'", "id")),
    "a zero-width space": ("id,\u200bname\n7,a\n", AROUND.format(r"'\u200bname'", "name")),
    "a line in quotes": ('"id,name"\n"7,a"\n', ONE_TEXT),
    "no header": ("7,a\n8,b\n", VALUES.format("'7'")),
    "no header, bars in a value": ('"a|b|c|d","7"\n"a|e|f|g","8"\n', VALUES.format("'7'")),
    "numbers for a header": ("0,1\n7,a\n", VALUES.format("'0'")),
    "the header again": ("id,name\nid,name\n7,a\n", AGAIN.format(2, "id")),
    "the header again, in another case": ("ID,x,Name\n7,,a\n\n Id ,x, NAME \n", AGAIN.format(4, "id")),
    "two files in one": ("id,name\n7,a\n\ufeffid,name\n8,b\n", AGAIN.format(3, "id")),
    "words": ("Not Found\n", NO_COLUMN.format("id", "'Not Found'")),
    "other names": ("key,x\n7,a\n", NO_COLUMN.format("id", "'key, x'")),
    "one other name": ("id,x1\n7,a\n", NO_COLUMN.format("name", "'id, x1'")),
    "nearly the name": ("id,NAMES\n7,a\n", NO_COLUMN.format("name", "'NAMES'")),
    "a number among names": ("id,2026\n7,a\n", NO_COLUMN.format("name", "'id, 2026'")),
    "many names": (f"{','.join(100 * 'x')}\n", NO_COLUMN.format("id", "'" + "x, x, x, " * 4 + "...")),
}


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
@pytest.mark.parametrize(("text", "message"), NEARLY.values(), ids=list(NEARLY))
def test_a_table_that_is_nearly_right_is_told_with_what_was_found(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    with pytest.raises(TemptError, match=f"^{re.escape(f'{path}: {message}')}$"):
        table = read_csv_table(path, ["id", "name"])
        table.integers("id")


@pytest.mark.parametrize(
    "text",
    [
        " id ,\tname\n7,a\n",
        "id\u00a0, name \n7,a\n",
        '" id "," name"\n7,a\n',
        "\ufeff id,name\n7,a\n",
        "'id',id,name\n8,7,a\n",
        "#,id,name\n1,7,a\n",
        "sep=,id,name\n1,7,a\n",
    ],
)
def test_a_header_with_white_space_or_odd_names_beside_is_read_as_the_plain_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    table = read_csv_table(path, ["id", "name"])
    assert table.integers("id")[0] == [7]
    assert table.texts("name")[0] == ["a"]


def test_a_text_that_is_called_like_its_column_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("id,name\n7,name\n")
    assert read_csv_table(tmp_path / "table.csv", ["id", "name"]).texts("name")[0] == ["name"]
