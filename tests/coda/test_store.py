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
from lit_modules.coda.core.store import Store
from tests.coda.fakes import FakeChat


@pytest.mark.parametrize("name", ["..", "../up", "a\0b", "x.", "é"])
def test_names_of_data_are_made_safe(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / "store") as store:
        with pytest.raises(ValueError, match="cannot be the name of a file in the store; take safe_name of it"):
            store.write_bytes(["pair", name], b"x")
        store.write_bytes(["pair", safe_name(name)], b"x")
    with pytest.raises(FileNotFoundError, match="There is no store"):
        Store(tmp_path / "none", writable=False)


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
