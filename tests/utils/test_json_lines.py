"""JSON lines: the line of each mistake is named."""

from pathlib import Path

import pytest

from lit_modules.utils.json_lines import read_json_lines


def test_values_have_their_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "x\xe2\x80\xa8y"}\n\n[1]\r\n')
    assert read_json_lines(path) == [(f"{path}:1", {"a": "x\u2028y"}), (f"{path}:3", [1])]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"a": 1', "a line must be JSON"),
        (b"\xff", "a line must be UTF-8 text"),
        (b"[" * 100_000, "a line must be JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "a field must come once, got 'b' more than once"),
    ],
)
def test_a_mistake_is_named_with_its_line(line: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line)
    with pytest.raises(ValueError, match=f"rows.jsonl:2: {sentence}"):
        read_json_lines(path)
