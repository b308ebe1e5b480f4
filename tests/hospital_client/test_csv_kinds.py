"""What is no table is told as what it is, plain and in gzip, and a sound table never is."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest

from hospital_client.csv_table import read_csv_table
from shared_model.errors import TemptError

TABLE = b"id,name\n7,a\n"
COLUMNS = pa.table({"id": [7], "name": ["a"]})


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("id,name")
        member.size = len(TABLE)
        archive.addfile(member, io.BytesIO(TABLE))
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return file.getvalue()


def sqlite() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE patient (id, name)")
        return database.serialize()


def arrow() -> bytes:
    file = io.BytesIO()
    pyarrow.feather.write_feather(COLUMNS, file)
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(COLUMNS, file)
    return file.getvalue()


def orc() -> bytes:
    file = io.BytesIO()
    pyarrow.orc.write_table(COLUMNS, file)
    return file.getvalue()


LFS = "a Git LFS pointer in the table's place; fetch the table with `git lfs pull`"
ANNEX = "a git-annex pointer in the table's place; fetch the table with `git annex get`"
JSON = "JSON; export the table as CSV"
SQL = "SQL, such as a dump of a database; export the table as CSV"
MARKUP = "a web page or XML, such as a page that asks for a login; fetch the file again"
UTF_16 = "UTF-16 text; save it as UTF-8"
UTF_32 = "UTF-32 text; save it as UTF-8"
R_DATA = "data of R; export the table as CSV"
STATISTICS = "data of SAS, SPSS or Stata; export the table as CSV"
ARCHIVE = "an archive; unpack it"
ZIP = "a zip archive or a spreadsheet; unpack it, or export it as CSV"
BINARY_TABLE = "a table in a binary form (Arrow, ORC, Avro or HDF5); export it as CSV"
DATABASE = "a database; export its table as CSV"
PRINTED = "a table as a database's client prints it; export it as CSV"
NULS = "NUL bytes, such as a copy that was cut off leaves; fetch the file again"
ENCRYPTED = "encrypted data; decrypt it"

KINDS: dict[str, tuple[bytes, str]] = {
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", LFS),
    "Git LFS, CR LF": (b"version https://git-lfs.github.com/spec/v1\r\noid sha256:4d7a\r\nsize 12345\r\n", LFS),
    "git-annex": (b"/annex/objects/SHA256E-s12--4d7a.csv.gz\n", ANNEX),
    "git-annex, a link as text": (b"../../.git/annex/objects/Wq/k1/MD5E-s12--4d/MD5E-s12--4d.csv", ANNEX),
    "JSON lines": (b'{"id": 7, "name": "a"}\n{"id": 8, "name": "b"}\n', JSON),
    "JSON, indented": (b'{\n  "id": [7],\n  "name": ["a"]\n}\n', JSON),
    "JSON, empty": (b"{}", JSON),
    "JSON of objects": (b'[{"id":7,"name":"a"}]', JSON),
    "JSON of lists": (json.dumps([["id", "name"], [7, "a"]], indent=1).encode(), JSON),
    "JSON of texts": (b'["id", "name"]\n', JSON),
    "JSON with a byte order mark": (b'\xef\xbb\xbf {"id": 7}', JSON),
    "JSON, long": (b"[" + b'{"id":7,"name":"a"},' * 20_000 + b'{"id":7}]', JSON),
    "SQL of MySQL": (
        b"-- MySQL dump 10.13\n--\n-- Host: here\n\n/*!40101 SET NAMES utf8 */;\nDROP TABLE IF EXISTS `patient`;\n",
        SQL,
    ),
    "SQL of MariaDB": (
        b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump\nCREATE TABLE `patient` (\n  `id` int,\n",
        SQL,
    ),
    "SQL of PostgreSQL": (b"--\n-- PostgreSQL database dump\n--\n\nSET statement_timeout = 0;\n", SQL),
    "SQL of SQLite": (b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\nCREATE TABLE patient(id,name);\n", SQL),
    "SQL, rows alone": (b"insert into patient (id, name) values (7, 'a');\n", SQL),
    "SQL, a table": (b"CREATE TABLE patient (id INT, name TEXT);\n", SQL),
    "SQL, a copy": (b"COPY public.patient (id, name) FROM stdin;\n7\ta\n\\.\n", SQL),
    "PostgreSQL's own": (b"PGDMP\x01\x0e\x00\x04\x08", DATABASE),
    "XML": (b'<?xml version="1.0"?>\n<rows><row id="7" name="a"/></rows>\n', MARKUP),
    "a web page": (b"<!DOCTYPE html>\n<title>Log in</title>\n", MARKUP),
    "SAS": (bytes(12) + b"\xc2\xea\x81\x60\xb3\x14\x11\xcf\xbd\x92\x08\0\x09\xc7", STATISTICS),
    "SAS transport": (b"HEADER RECORD*******LIBRARY HEADER RECORD!!!!!!!000000000000", STATISTICS),
    "SPSS": (b"$FL2@(#) SPSS DATA FILE", STATISTICS),
    "SPSS, packed": (b"$FL3@(#) SPSS DATA FILE", STATISTICS),
    "Stata": (b"<stata_dta><header><release>118</release>", STATISTICS),
    "RDS": (b"X\n\0\0\0\x03\0\x04\x02\x01", R_DATA),
    "RData": (b"RDX3\nX\n\0\0\0\x03", R_DATA),
    "RData as text": (b"RDA3\nA\n3\n262657\n", R_DATA),
    "SQLite": (sqlite(), DATABASE),
    "Access": (b"\0\1\0\0Standard ACE DB\0", DATABASE),
    "zip": (zipped("patient.csv"), ZIP),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), ZIP),
    "an empty zip": (zipped(), ZIP),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a spreadsheet; export it as CSV"),
    "tar": (tar(), ARCHIVE),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04", ARCHIVE),
    "rar": (b"Rar!\x1a\x07\x01\0", ARCHIVE),
    "bzip2": (bz2.compress(TABLE), "bzip2 data; decompress it"),
    "xz": (lzma.compress(TABLE), "xz data; decompress it"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x58\x61\0\0", "zstd data; decompress it"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "lz4 data; decompress it"),
    "compress": (b"\x1f\x9d\x90\x69\xc8", "data of compress (.Z); decompress it"),
    "Parquet": (parquet(), "a Parquet file; export it as CSV"),
    "Arrow": (arrow(), BINARY_TABLE),
    "ORC": (orc(), BINARY_TABLE),
    "Avro": (b"Obj\x01\x04\x16avro.schema", BINARY_TABLE),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0\0", BINARY_TABLE),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document; export the table as CSV"),
    "RTF": (b"{\\rtf1\\ansi\\deff0 id,name\\par}", "a document of a word processor; export the table as CSV"),
    "a client's table": (b"+----+------+\n| id | name |\n+----+------+\n|  7 | a    |\n", PRINTED),
    "NUL bytes": (bytes(4096), NULS),
    "PGP": (b"-----BEGIN PGP MESSAGE-----\n\nhQ", ENCRYPTED),
    "openssl": (b"Salted__\x8c\x12", ENCRYPTED),
    "UTF-16": ("id,name\n7,a\n".encode("utf-16"), UTF_16),
    "UTF-16, little end": ("id,name\n7,a\n".encode("utf-16-le"), UTF_16),
    "UTF-16, big end": ("id,name\n7,a\n".encode("utf-16-be"), UTF_16),
    "UTF-32": ("id,name\n7,a\n".encode("utf-32"), UTF_32),
    "UTF-32, little end": ("id,name\n7,a\n".encode("utf-32-le"), UTF_32),
    "UTF-32, big end": ("id,name\n7,a\n".encode("utf-32-be"), UTF_32),
    "UTF-32, big end with its mark": ("\ufeffid,name\n7,a\n".encode("utf-32-be"), UTF_32),
}


@pytest.mark.parametrize(("content", "kind"), KINDS.values(), ids=list(KINDS))
def test_what_is_no_table_is_told_as_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    packed = gzip.compress(content)
    for name, data, expected in (
        ("plain.csv", content, "CSV"),
        ("packed.csv.gz", packed, "CSV"),
        ("named.csv.gz", content, "gzip, as its name says"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        message = f"{path}: expected {expected}, found {kind}"
        with pytest.raises(TemptError, match=f"^{re.escape(message)}$"):
            read_csv_table(path, ["id", "name"])


@pytest.mark.parametrize(
    "first",
    [
        "[note]",
        "{note}",
        "version",
        "ORC",
        "ORC_7",
        "create table",
        "-- note",
        "set size",
        "+1",
        "X",
        "begin",
        "7z",
        "$x",
    ],
)
def test_a_sound_table_whose_first_column_is_called_like_something_else_is_read(tmp_path: Path, first: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{first},id,name\n1,7,a\n")
    assert read_csv_table(path, ["id", "name"]).integers("id")[0] == [7]
