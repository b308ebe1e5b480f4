"""The house holds: which way imports go, what a file may be, and that every equation of the paper has code and a test.

An equation's lines stand between `# Eq. 9` and `# /Eq. 9`; `# Eq. 1-2, rearranged: why` opens both. A line of
Algorithm 1 is marked `# Algorithm 1, line 4` (or `lines 2-6`, `lines 2 and 10`). A method says its row in the first
line of its file: `Table 3, row TEMPT`.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared_model", "hospital_client", "server", "sim")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SHARED_MODEL = [path for path in SOURCES if path.is_relative_to(ROOT / "shared_model")]
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve())

EQUATIONS = {*range(1, 15), 18, 19}  # 15 and 16 are parts of 19; 17 as printed exceeds 1
ALGORITHM_1 = set(range(1, 16))
TABLE_3 = {"TEMPT": "tempt", "TEMPT (finetune)": "finetune", "Full-Train": "full-train", "Single-Train": "single-train"}

NUMBERS = r"\d+(?:(?:-|, | and )\d+)*"
OPENS = re.compile(r"# Eq\. (\d+(?:-\d+)?)(?:[:,].*)?")
CLOSES = re.compile(r"# /Eq\. (\d+(?:-\d+)?)")
ALGORITHM = re.compile(rf"# Algorithm 1, lines? ({NUMBERS})(?::.*)?")


def test_imports_when_linted_go_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_files_when_counted_hold_one_idea() -> None:
    lines = {_name(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_files_when_named_say_what_they_hold() -> None:
    empty = {"utils", "helpers", "common", "misc"}
    assert [_name(path) for path in (*SOURCES, *TESTS) if path.stem in empty] == []


def test_public_functions_and_classes_of_shared_model_have_docstrings() -> None:
    # described once, in shared_model/recommendation.py and shared_model/federated_algorithm.py
    contract = {("adaptation", "fit"), ("adaptation", "answer")}
    contract |= {("pretrainings", "network"), ("pretrainings", "task")}
    contract |= {("algorithms", name) for name in ("begin", "ask", "local", "gather", "accept", "finish")}
    silent = [
        f"{_name(path)}: {node.name}"
        for path in SHARED_MODEL
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        if not node.name.startswith("_") and ast.get_docstring(node) is None
        if (path.parent.name, node.name) not in contract
    ]
    assert silent == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: _name(path))
def test_brackets_of_equations_are_closed(path: Path) -> None:
    assert brackets(path.read_text())[1] == []


@pytest.mark.parametrize("equation", sorted(EQUATIONS))
def test_equation_has_code_and_a_test(equation: int) -> None:
    code = [_name(path) for path in SHARED_MODEL if equation in brackets(path.read_text())[0]]
    tests = [_name(path) for path in TESTS if equation in mentions(path.read_text())]
    assert code, f"no `# Eq. {equation}` ... `# /Eq. {equation}` in shared_model"
    assert tests, f"no file of tests speaks of Eq. {equation}"


def test_lines_of_algorithm_1_have_code() -> None:
    found = {
        line
        for path in SOURCES
        for _, comment in _comments(path.read_text())
        if (match := ALGORITHM.fullmatch(comment))
        for line in numbers(match[1])
    }
    assert found == ALGORITHM_1


@pytest.mark.parametrize(("row", "name"), TABLE_3.items())
def test_row_of_table_3_has_code_that_says_so(row: str, name: str) -> None:
    from shared_model.adaptation import adaptations

    folder = "shared_model.adaptation" if name in adaptations() else "sim.baselines"
    module = importlib.import_module(f"{folder}.{name.replace('-', '_')}")
    assert row == module.TITLE
    assert f"Table 3, row {row}." in (module.__doc__ or "").partition("\n")[0]


def test_methods_that_say_a_row_of_the_papers_have_its_title() -> None:
    from sim.methods import method, method_names

    rows = {
        name: re.search(r"Table \d, row (.+)\.$", (method(name).__doc__ or "").partition("\n")[0])
        for name in method_names()
    }
    assert {name: row[1] for name, row in rows.items() if row and row[1] != method(name).TITLE} == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Eq. 9: no positive\nx = 1\n# /Eq. 9\n", ({9}, [])),
        ("# Eq. 1-2, rearranged: why\nx = 1\n# /Eq. 1-2\n", ({1, 2}, [])),
        ("# Eq. 8\n# Eq. 9\nx = 1\n# /Eq. 9\n# /Eq. 8\n", ({8, 9}, [])),
        ("# Eq. 9\nx = 1\n", (set(), ["line 1: Eq. 9 is not closed"])),
        ("x = 1\n# /Eq. 9\n", (set(), ["line 2: Eq. 9 is closed but not open"])),
        (
            "# Eq. 1\nx = 1\n# /Eq. 2\n",
            (set(), ["line 3: Eq. 2 is closed but not open", "line 1: Eq. 1 is not closed"]),
        ),
        ("# Eq. 9\n# nothing\n# /Eq. 9\n", (set(), ["line 1: Eq. 9 holds no code"])),
        ("# Eq. 9 without its positive\n", (set(), ["line 1: neither opens nor closes: # Eq. 9 without its positive"])),
        ('"""\n# Eq. 9\n"""\n', (set(), [])),
    ],
)
def test_brackets_of_a_text(text: str, expected: tuple[set[int], list[str]]) -> None:
    assert brackets(text) == expected


def test_mentions_of_a_test_leave_out_the_files_own_docstring() -> None:
    assert mentions('"""Eq. 1-14."""\n\ndef f():\n    """Eq. 3, and Eq. 5-7."""\n    # Eq. 9\n') == {3, 5, 6, 7, 9}


def brackets(text: str) -> tuple[set[int], list[str]]:
    """The equations whose brackets hold code, and what is wrong with the others."""
    code = _lines_with_code(text)
    found: set[int] = set()
    faults: list[str] = []
    open_at: list[tuple[str, int]] = []
    for line, comment in _comments(text):
        if not re.match(r"#\s*/?\s*Eq\b", comment):
            continue
        if opens := OPENS.fullmatch(comment):
            open_at.append((opens[1], line))
        elif not (closes := CLOSES.fullmatch(comment)):
            faults.append(f"line {line}: neither opens nor closes: {comment}")
        elif not open_at or open_at[-1][0] != closes[1]:
            faults.append(f"line {line}: Eq. {closes[1]} is closed but not open")
        else:
            label, start = open_at.pop()
            if code.isdisjoint(range(start, line)):
                faults.append(f"line {start}: Eq. {label} holds no code")
            else:
                found |= numbers(label)
    return found, faults + [f"line {line}: Eq. {label} is not closed" for label, line in open_at]


def mentions(text: str) -> set[int]:
    """The equations that a file of tests speaks of, its own docstring apart: that one may name them all at once."""
    documentation = ast.parse(text).body[:1] if ast.get_docstring(ast.parse(text)) is not None else []
    after = "\n".join(text.splitlines()[documentation[0].end_lineno if documentation else 0 :])
    return {number for match in re.finditer(rf"\bEq\. ({NUMBERS})", after) for number in numbers(match[1])}


def numbers(text: str) -> set[int]:
    """The numbers of "4", "2-6", "2 and 10", "1, 3-5"."""
    found: set[int] = set()
    for part in re.split(r", | and ", text):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _comments(text: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def _lines_with_code(text: str) -> set[int]:
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0] for token in tokens if token.type not in nothing}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_letters_of_the_paper_have_their_names_in_the_files_that_contributing_names() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| letter | name | file |")[2]
    rows = [re.findall(r"`([^`]+)`", line) for line in text.partition("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 10
    for *names, file in rows:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in names:
            defined = rf"^\s*((self\.)?{name}(, .*)?(:| =)|class {name}\b|(.*, )?{name}(,.*)? = )"
            assert re.search(defined, source, re.MULTILINE), (name, file)
