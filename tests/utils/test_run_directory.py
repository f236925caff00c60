"""Run directories: one writer, whole files, no path outside, events, the manifest."""

import os
from pathlib import Path

import pytest

from lit_modules.utils.errors import UsageError
from lit_modules.utils.run_directory import DirectoryInUse, RunDirectory, stage_key


def test_two_writers_are_refused_and_readers_are_not(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, noun="sweep") as directory:
        directory.write_json(["a.json"], {"key": "1"})
        with pytest.raises(DirectoryInUse, match=r"Another process writes to the sweep .* wait for it"):
            RunDirectory(tmp_path, noun="sweep")
        with pytest.raises(DirectoryInUse, match="Another process"):
            RunDirectory(tmp_path, shard=(1, 2))
        reader = RunDirectory(tmp_path, writable=False)
        assert reader.read_json(["a.json"]) == {"key": "1"}
        with pytest.raises(RuntimeError, match="is not open for writing"):
            reader.write_bytes(["b"], b"")
    RunDirectory(tmp_path).close()
    with pytest.raises(FileNotFoundError, match="There is no sweep"):
        RunDirectory(tmp_path / "none", writable=False, noun="sweep")


def test_shards_share_a_directory_but_not_a_part(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, (1, 2)) as first, RunDirectory(tmp_path, (2, 2)) as second:
        for other in (None, (1, 2), (1, 3)):
            with pytest.raises(DirectoryInUse, match="divide the work by the same number of shards"):
                RunDirectory(tmp_path, other)
        first.log({"n": 1})
        second.log({"n": 2})
        assert [event["n"] for event in first.events()] == [1, 2]
    with pytest.raises(ValueError, match=r"1 <= number <= total, got \(3, 2\)"):
        RunDirectory(tmp_path, (3, 2))


@pytest.mark.parametrize("name", ["..", "", "../up", "a/b", "/etc", ".hidden", "a\0b", "x.", "C:\\x", "é"])
def test_no_name_leaves_the_directory(tmp_path: Path, name: str) -> None:
    with (
        RunDirectory(tmp_path) as directory,
        pytest.raises(ValueError, match="cannot be the name of a file in the run"),
    ):
        directory.write_bytes(["pair", name], b"x")


def test_no_link_leads_out_of_the_directory(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run") as directory:
        (tmp_path / "run" / "pair").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="leads out of the run by a link"):
            directory.write_bytes(["pair", "x"], b"x")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with RunDirectory(tmp_path) as directory:
        directory.write_json(["a", "a.json"], {"n": 1})
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            directory.write_json(["a", "a.json"], {"n": 2})
        assert directory.read_json(["a", "a.json"]) == {"n": 1}
        assert len(list((tmp_path / "a").iterdir())) == 1


def test_damaged_records_are_told_and_made_again(tmp_path: Path) -> None:
    key = stage_key("a", {"x": 1, "y": 2})
    assert key == stage_key("a", {"y": 2, "x": 1}) != stage_key("b", {"x": 1, "y": 2}) != stage_key("a", {"x": 1})
    with RunDirectory(tmp_path) as directory:
        directory.write_json(["a", "done.json"], {"key": key})
        assert directory.missing(["a", "b"], "done.json") == ["b"]
        assert directory.read_done(["a", "done.json"], key) == {"key": key}
        assert directory.read_done(["a", "done.json"], "2") is None
        (tmp_path / "a" / "done.json").write_bytes(b'{"key": ')
        with pytest.warns(UserWarning, match="is damaged and is made again"):
            assert directory.read_json(["a", "done.json"]) is None


def test_half_a_line_of_a_killed_run_does_not_count(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.log({"n": 1})
        with (tmp_path / "events.jsonl").open("ab") as file:
            file.write(b'{"n": 2')
        assert [event["n"] for event in directory.events()] == [1]
        directory.log({"n": 3})
        assert [event["n"] for event in directory.events()] == [1, 3]
        (tmp_path / "events.jsonl").write_bytes(b"half\n")
        with pytest.raises(ValueError, match=r"events\.jsonl:1: a line must be JSON, got 'half'\."):
            list(directory.events())


def test_other_settings_are_refused(tmp_path: Path) -> None:
    settings = {"rate": 0.1, "files": {"a.yaml": "0" * 64}, "seeds": [0, 1], "p": float("inf")}
    settings["methods"] = [{"name": "NPO", "beta": 0.1}]  # whose keys the manifest sorts
    with RunDirectory(tmp_path, noun="sweep") as directory:
        directory.claim(settings, growing=["seeds"], beside=())
        directory.claim({**settings, "seeds": [0, 1, 2]}, growing=["seeds"], beside=())
        for other, sentence in (
            ({"rate": 0.2}, r"holds a sweep with rate=0\.1, got rate=0\.2; take another folder\."),
            ({"files": {"a.yaml": "1" * 64}}, r"holds a sweep with another content of files\.a\.yaml; take another"),
            ({"files": {}}, r"holds a sweep with files\.a\.yaml=0+, got none; take another"),
            ({"more": "x"}, r"holds a sweep with no more, got more=x; take another"),
            ({}, r"with seeds=\[0, 1, 2\], got seeds=\[0, 1\]: values may be added, not left out; take another"),
        ):
            with pytest.raises(UsageError, match=sentence):
                directory.check({**settings, **other}, growing=["seeds"])
        directory.claim({"n": 1}, part="captions")
        directory.forget("run")
        assert directory.settings() is None
        assert directory.settings("captions") == {"n": 1}


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with RunDirectory(tmp_path) as directory:
        directory.check({}, beside=["models"])
        with pytest.raises(UsageError, match="holds something that is no run; take another folder"):
            directory.claim({}, beside=())
        directory.claim({})
