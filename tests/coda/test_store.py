import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_modules.coda.backends.protocols import BackendError, ChatRequest, Reply, user_message
from lit_modules.coda.backends.recorded import RecordedChat
from lit_modules.coda.core.concepts import safe_name
from lit_modules.coda.core.store import Store, StoreInUse, stage_key
from tests.coda.fakes import FakeChat


def test_two_writers_are_refused_readers_and_shards_are_not(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.write_json(["a.json"], {"key": "1"})
        for shard in (None, (1, 2)):
            with pytest.raises(StoreInUse, match=r"Another process writes to the store .* wait for it"):
                Store(tmp_path, shard)
        assert Store(tmp_path, writable=False).read_json(["a.json"]) == {"key": "1"}
    with Store(tmp_path, (1, 2)), Store(tmp_path, (2, 2)):
        for other in (None, (1, 2), (1, 3)):
            with pytest.raises(StoreInUse, match="divide the work by the same number of shards"):
                Store(tmp_path, other)
    with pytest.raises(ValueError, match=r"1 <= number <= total, got \(3, 2\)"):
        Store(tmp_path, (3, 2))


@pytest.mark.parametrize("name", ["..", "", "../up", "a/b", ".hidden", "a\0b", "a\nb", "x.", "C:\\x", "é"])
def test_no_name_and_no_link_leave_the_store(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / "store") as store:
        with pytest.raises(ValueError, match="cannot be the name of a file in the store"):
            store.write_bytes(["pair", name], b"x")
        store.write_bytes(["pair", safe_name(name)], b"x")
        (tmp_path / "store" / "link").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="leads out of the store by a link"):
            store.write_bytes(["link", "x"], b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_records_are_whole_and_damaged_ones_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with Store(tmp_path) as store:
        store.write_json(["a.json"], {"key": "1"})
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            patch.setattr(Path, "replace", full)
            with pytest.raises(OSError, match="No space left"):
                store.write_json(["a.json"], {"key": "2"})
        assert store.read_done(["a.json"], "1") == {"key": "1"}
        assert store.read_done(["a.json"], "2") is None
        assert list(store.content_hashes()) == ["a.json"]
        (tmp_path / "a.json").write_bytes(b'{"key": ')
        with pytest.warns(UserWarning, match="is damaged and is made again"):
            assert store.read_json(["a.json"]) is None
        store.log({"n": 1})
        with (tmp_path / "events.jsonl").open("ab") as file:
            file.write(b'{"n": 2')  # of a killed run
        store.log({"n": 3})
        assert [event["n"] for event in store.events()] == [1, 3]
    keys = {stage_key("a", {"x": 1}), stage_key("b", {"x": 1}), stage_key("a", {"x": 2}), stage_key("a", {"y": 1})}
    assert len(keys) == 4
    assert stage_key("a", {"x": 1, "y": 2}) == stage_key("a", {"y": 2, "x": 1})


def question(text: str = "What?", shade: int = 0) -> ChatRequest:
    return ChatRequest((user_message(text, 1),), (Image.new("RGB", (4, 4), (shade, 0, 0)),), 10, 0.5, seed=3)


def test_no_question_is_asked_twice(tmp_path: Path) -> None:
    model = FakeChat(script=["a", "b", "c"])
    with Store(tmp_path) as store:
        replies = RecordedChat(model, store).ask_many([question(), question(shade=9), question()])
        assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["a", "b", "a"]
        again = RecordedChat(model, store).ask(question())
        assert (again.text, again.cached, again.usage.input_tokens) == ("a", True, 1)
        model.identity = "another"
        assert RecordedChat(model, store).ask(question()).text == "c"
    assert len(model.asked) == 3


def test_an_error_is_of_its_question_alone_and_not_kept(tmp_path: Path) -> None:
    class Refusing(FakeChat):
        def chat(self, *arguments: Any, **more: Any) -> Reply:
            if not self.asked:
                self.asked.append("")
                raise BackendError("no answer")
            return super().chat(*arguments, **more)

    model = Refusing(script=["b", "a"])
    with Store(tmp_path) as store:
        chat = RecordedChat(model, store)
        first, second = chat.ask_many([question(), question("Who?")])
        assert isinstance(first, BackendError)
        assert isinstance(second, Reply)
        assert chat.ask(question("Who?")).text == second.text == "b"
        with pytest.raises(BackendError, match="no answer"):
            chat.ask(question())
        assert RecordedChat(model, store).ask(question()).text == "a"
        with pytest.raises(ValueError, match="takes 0 images in a message, got 1"):
            RecordedChat(FakeChat(images_per_message=0), store).ask(question())


def test_defect_1_an_image_without_a_place_in_the_question_is_refused() -> None:
    image = Image.new("RGB", (4, 4))
    for message, places in (({"role": "user", "content": "What is it?"}, 0), (user_message("What?", 2), 2)):
        with pytest.raises(ValueError, match=f"{places} places for images and 1 images"):
            ChatRequest((message,), (image,))


@pytest.mark.slow
def test_defect_8_a_killed_run_goes_on_to_the_same_files_without_asking_again(tmp_path: Path, repository: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    program = str(repository / "tests" / "coda" / "killed_runs.py")
    done = subprocess.run(
        [sys.executable, program, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    whole = found.pop("whole")
    assert len(set(whole["asked"])) == len(whole["asked"]) > 10
    assert len(found) == 20
    for name, one in found.items():
        assert one["signal"] == signal.SIGKILL, name
        assert one["hashes"] == whole["hashes"], name
        assert set(one["asked"]) == set(whole["asked"]), name
        repeated = len(one["asked"]) - len(whole["asked"])
        # what was answered, and not yet on the disk, is the one thing that may be asked again
        assert repeated <= (1 if name.startswith("before") else 0), name
