"""The benchmarks' table: ratios of the same turn to the best of the others, and void rows that end the script."""

import re

import pytest

from benchmarks.timing import HEAD, Table, end, in_turns


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_compare_with_the_best_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("Family", 3, "lightning", "no-such-package")
    table.add("slower", [2.0, 3.0, 5.0], {"a": [2.0, 2.0, 2.0], "b": [9.0, 9.0, 9.0]}, "equal answers 4 of 4")
    table.add("allowed", [0.2, 0.3, 0.5], {"floor": [0.2, 0.2, 0.2]}, most=1.5, unit="ms")
    table.add("no aim", [3.0], {"floor": [2.0]}, most=None, unit="MiB")
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"^Family: \d{4}-\d\d-\d\d, .*torch \S+, lightning \S+, 3 round\(s\), \S+ time$", lines[1])
    head, rule, *rows = [cells(line) for line in lines if line.startswith("|")]
    assert head == list(HEAD)
    assert rule == ["---"] * len(HEAD)
    assert rows == [
        [
            "slower",
            "3.000 s",
            "a 2.000 s (b 9.000 s)",
            "1.000",
            "1.500",
            "2.500",
            "equal answers 4 of 4",
            "ABOVE 1.000",
        ],
        ["allowed", "300 ms", "floor 200 ms", "1.000", "1.500", "2.500", "", "at most 1.500"],
        ["no aim", "3.000 MiB", "floor 2.000 MiB", "1.500", "1.500", "1.500", "", ""],
    ]
    end(table)  # slower is no reason to fail


def test_a_void_row_ends_the_script_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    fine, table = Table("Fine", 1), Table("Family", 1)
    table.add("  attack", [1.0], {"peer": [2.0]}, "ours 90.0 %; peer 80.0 %", void="peer finds more")
    with pytest.raises(SystemExit, match="attack") as stop:
        end(fine, table)
    assert isinstance(stop.value.code, str)  # Python prints it and ends with 1
    assert "| VOID: peer finds more |" in capsys.readouterr().out


def test_works_take_turns_and_change_who_is_first() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    assert in_turns(2, lambda: work("a"), lambda: work("b")) == [[1.0, 4.0], [2.0, 3.0]]
    assert order == ["a", "b", "b", "a"]
