import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from datamodules.lume.rows import FIELDS, TASKS, Row, check_disjoint, read_documents, read_rows

GOOD = {"id": "1sc1", "input": "A", "output": "b.", "task": "Task3"}


def write(path: Path, *lines: bytes | dict[str, Any]) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def row(identifier: str, task: str = "Task3") -> Row:
    return Row(identifier, "A", "b", task, "forget")


MALFORMED: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "cut off": (b'{"id": "1sc1"', "a line must be JSON, got"),
    "byte order mark": (b"\xef\xbb\xbf{}", "a line must be JSON, got"),
    "array": (b"[1]", r"a row must be an object with the strings id, input, output, task, got \[1\]\."),
    "not UTF-8": (b'{"id": "\xff"}', "a line must be UTF-8 text, got"),
    "missing field": ({"id": "1sc1", "input": "A", "output": "b"}, "the field 'task' is missing"),
    "number": ({**GOOD, "output": 3}, "'output' must be a string that is not blank, got 3"),
    "surrogate": ({**GOOD, "output": "\ud800"}, "'output' must be a string that is not blank, got"),
    "unknown task": ({**GOOD, "task": "Task4"}, "must be of Task1, Task2, Task3, got 'Task4'"),
    "id without kind": ({**GOOD, "id": "12345"}, "'id' must be a document's id followed by 'sc' or 'qa' and one digit"),
    "id of quotes": ({**GOOD, "id": '""sc1'}, "'id' must be a document's id"),
    "id with another digit": ({**GOOD, "id": "1sc\u0663"}, "'id' must be a document's id"),
    "id twice": (GOOD | {"id": "0sc1"}, r"an id must come once, and '0sc1' stands at .*:1 already"),
    "id twice but for quotes": (GOOD | {"id": '"0"sc1'}, "an id must come once"),
    "document of two tasks": (GOOD | {"id": "0qa0", "task": "Task1"}, "got Task1 and Task3 for document '0'"),
}


@pytest.mark.parametrize(("line", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_line_is_named(line: bytes | dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "forget.jsonl", {**GOOD, "id": "0sc1"}, line, {**GOOD, "id": "2sc1"})
    with pytest.raises(ValueError, match=sentence) as raised:
        read_rows(path, "forget")
    message = str(raised.value)
    assert message.startswith(f"{path}:2: ")
    assert message.isprintable()  # one line, and nothing that a terminal would act on
    assert len(message) < len(str(path)) + 250


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
valid = st.fixed_dictionaries(
    {
        "id": st.builds(
            "{}{}{}".format,
            text.filter(lambda s: s.replace('"', "").strip()),
            *map(st.sampled_from, (("sc", "qa"), "0123456789")),
        ),
        "input": text,
        "output": text,
        "task": st.sampled_from(TASKS),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(valid, min_size=1, max_size=4),
    extra=st.dictionaries(text, st.none() | st.integers() | st.text()),
    ascii=st.booleans(),
)
def test_valid_rows_round_trip(
    records: list[dict[str, str]], extra: dict[str, Any], ascii: bool, tmp_path: Path
) -> None:
    documents = [record["id"][:-3].replace('"', "") for record in records]
    assume(len(set(documents)) == len(documents))
    extra = {name: value for name, value in extra.items() if name not in FIELDS}
    path = tmp_path / "retain.jsonl"
    lines = [json.dumps({**extra, **record}, ensure_ascii=ascii) for record in records]
    path.write_bytes("\n".join(lines).encode())
    rows = read_rows(path, "retain")
    assert [{name: getattr(row, name) for name in FIELDS} for row in rows] == records
    assert {row.split for row in rows} == {"retain"}


def test_blank_lines_are_passed_over_and_the_last_may_lack_its_end(tmp_path: Path) -> None:
    for end in (b"", b"\n", b"\r\n"):
        path = write(tmp_path / "forget.jsonl", GOOD, b"", {**GOOD, "id": "2sc1"}, b" ", end)
        assert [row.id for row in read_rows(path, "forget")] == ["1sc1", "2sc1"]


@pytest.mark.parametrize("content", [b"", b" \n\n"])
@pytest.mark.parametrize("read", [lambda path: read_rows(path, "forget"), read_documents])
def test_empty_file(content: bytes, read: Any, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jsonl is empty; it must hold at least one line\."):
        read(tmp_path / "x.jsonl")
    with pytest.raises(FileNotFoundError, match=r"There is no file .*y\.jsonl"):
        read(tmp_path / "y.jsonl")


def test_quotes_are_no_part_of_the_document(tmp_path: Path) -> None:
    (quoted,) = read_rows(write(tmp_path / "x.jsonl", {**GOOD, "id": '"ab-1"qa0', "task": "Task1"}), "forget")
    assert (quoted.id, quoted.document, quoted.kind, quoted.text) == ('"ab-1"qa0', "ab-1", "qa", "A b.")


def test_sets_that_share_documents() -> None:
    check_disjoint([row("1sc1"), row("2sc1")], [row("3sc1")])
    with pytest.raises(ValueError, match="share 1 document, such as '1'"):
        check_disjoint([row('"1"sc1')], [row("1qa0"), row("2sc1")])
    with pytest.raises(ValueError, match="share 2 documents, such as '1'"):
        check_disjoint([row("1sc1"), row("2sc1")], [row("1qa0"), row("2sc1")])


def test_documents(tmp_path: Path) -> None:
    documents = [{"id": "7", "document": "One\u2028two.", "page": 3}, {"id": "8", "document": "Three."}]
    path = tmp_path / "nonmembers.jsonl"
    path.write_text("\n".join(json.dumps(document, ensure_ascii=False) for document in documents), encoding="utf-8")
    assert read_documents(path) == [("7", "One\u2028two."), ("8", "Three.")]
    for line, sentence in {
        b"{}": ":2: the field 'id' is missing",
        b'{"id": 1, "document": "x"}': ":2: the field 'id' must be a string",
        b'{"id": "9", "document": "\xff"}': ":2: a line must be UTF-8",
        json.dumps(documents[0]).encode(): ":2: an id must come once, and '7' stands in the file already",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            read_documents(write(path, documents[0], line))


COUNTS = {
    "forget": {"Task1": (243, 243), "Task2": (250, 1250), "Task3": (373, 373)},
    "retain": {"Task1": (246, 246), "Task2": (250, 1250), "Task3": (371, 371)},
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_files(name: str, lume_root: Path) -> None:
    rows = read_rows(lume_root / f"{name}.jsonl", name)
    counts = Counter((row.task, row.kind) for row in rows)
    assert {task: (counts[task, "sc"], counts[task, "qa"]) for task in TASKS} == COUNTS[name]
    assert len({row.document for row in rows}) == {"forget": 866, "retain": 867}[name]
    assert {row.task for row in rows if '"' in row.id} == {"Task1"}
    raw = [json.loads(line) for line in (lume_root / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert [{name: getattr(row, name) for name in FIELDS} for row in rows] == raw
    check_disjoint(*(read_rows(lume_root / f"{name}.jsonl", name) for name in COUNTS))
