import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.few_shot.few_shot import FewShotPairs
from lit_modules.cli import main
from lit_modules.coda.backends.protocols import BackendError, Capabilities, Message, Reply
from lit_modules.coda.in_context import InContext
from lit_modules.metrics.few_shot import NWayAccuracy, PairAccuracy
from tests.coda.test_updating import scores_of, trainer

SHADES = {"Puff Adder": (190, 40, 40), "Adder": (40, 40, 190), "Horned Adder": (40, 190, 40), "Mole": (190, 190, 40)}


def picture(name: str, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-40, 40, (6, 5, 3))
    return Image.fromarray((np.array(SHADES[name]) + noise).astype(np.uint8)).resize((30, 24))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures of four species, which their colours tell apart, and a pair of two of them."""
    folder = tmp_path / "species"
    for place, name in enumerate(SHADES):
        for split, number in (("train", 3), ("test", 2)):
            inner = folder / split / name.replace(" ", "_")
            inner.mkdir(parents=True)
            for index in range(number):
                picture(name, 100 * place + 10 * number + index).save(inner / f"{index}.png")
    (folder / "pairs.json").write_text(json.dumps([{"target": "Puff Adder", "confusable": "Adder"}]))
    features = [{"target": "Puff Adder", "confusable": "Adder", "features": ["a broad head"]}]
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def species(root: Path, **more: Any) -> FewShotPairs:
    return FewShotPairs(str(root), **{"n_real": 2, "eval_batch_size": 3, **more})


def module_of(chat: "Nearest", **more: Any) -> InContext:
    return InContext(chat, metric=PairAccuracy(resamples=0), **more)


class Nearest:
    """Answers with the name of the example that is nearest in colour, and without examples with the first option."""

    def __init__(self, images_per_message: int = 9, fail_from: int = 10**9) -> None:
        self.identity = "nearest 1"
        self.capabilities = Capabilities(images_per_message)
        self.fail_from = fail_from
        self.asked: list[tuple[Sequence[Message], Sequence[Image.Image]]] = []

    def chat(self, messages: Sequence[Message], images: Sequence[Image.Image], *more: Any, **options: Any) -> Reply:
        if len(self.asked) >= self.fail_from:
            raise BackendError("the model is away")
        self.asked.append((messages, images))
        names = [turn["content"][0]["text"] for turn in messages if turn["role"] == "assistant"]
        if not names:
            listed = messages[0]["content"][1]["text"].partition("categories: ")[2]
            return Reply(listed.partition(" or ")[0].partition(",")[0], self.identity)
        colours = [np.asarray(image).mean((0, 1)) for image in images]
        distances = [np.abs(colour - colours[-1]).sum() for colour in colours[:-1]]
        return Reply(f"It is the {names[int(np.argmin(distances))]}.", self.identity)


def test_examples_are_seen_in_turns_of_one_picture_each(root: Path, tmp_path: Path) -> None:
    chat = Nearest()
    module = module_of(chat)
    data = species(root, n_context=2, features=str(root / "features.json"), feature_context=True)
    results = scores_of(tmp_path, module, data)
    assert (results["acc_macro"], results["position_bias"]) == (1, 0.5)
    assert len(chat.asked) == 2 * 2 * 2
    for messages, images in chat.asked:
        assert [turn["role"] for turn in messages] == ["user", "assistant"] * 4 + ["user"]
        asked = [turn["content"] for turn in messages if turn["role"] == "user"]
        assert all([part["type"] for part in parts] == ["image", "text"] for parts in asked)
        assert len({parts[1]["text"] for parts in asked}) == 1
        assert asked[0][1]["text"].startswith("Puff Adder: a broad head.")
        assert len(images) == 5
    results = scores_of(tmp_path, module_of(Nearest(images_per_message=1)), species(root))  # knows nothing
    assert (results["acc_macro"], results["position_bias"], results["invalid"]) == (0.5, 1, 0)


def test_examples_are_the_supports_and_the_same_for_both_orders(root: Path) -> None:
    data = species(root, n_context=2)
    batches = list(data.test_dataloader())
    supports = {
        picture.name: picture.load().tobytes()
        for key in data.concepts
        for picture in data.support(data.concepts[key])[:2]
    }
    asked = {image.tobytes() for batch in batches for image in batch["image"]}
    rows = [row for batch in batches for row in zip(batch["query"].tolist(), batch["context"], strict=True)]
    seen: dict[int, list[Any]] = {}
    for query, examples in rows:
        assert sorted(name for _, name in examples) == ["Adder"] * 2 + ["Puff Adder"] * 2
        assert {image.tobytes() for image, _ in examples} == set(supports.values())
        assert not {image.tobytes() for image, _ in examples} & asked
        seen.setdefault(query, []).append([(image.tobytes(), name) for image, name in examples])
    assert all(orders[0] == orders[1] for orders in seen.values())
    assert len({str([name for _, name in orders[0]]) for orders in seen.values()}) > 1  # an order of each query's own
    assert "context" not in next(iter(data.train_dataloader()))


def test_many_options_and_known_pairs_have_their_examples_too(root: Path, tmp_path: Path) -> None:
    (root / "known.json").write_text(json.dumps([{"target": "Horned Adder", "confusable": "Mole"}]))
    known = module_of(Nearest(), retention_metric=PairAccuracy(resamples=0))
    results = scores_of(tmp_path, known, species(root, n_context=1, retention_pairs=str(root / "known.json")))
    assert (results["acc_macro"], results["retention/acc_macro"]) == (1, 1)
    for place in (1, 2):
        (root / "train" / "Mole" / f"{place}.png").unlink()
    with pytest.raises(ValueError, match="Mole has 1 training pictures, and n_context is 2; lower it or add some"):
        species(root, n_context=2, retention_pairs=str(root / "known.json")).setup("test")
    pairs = [{"target": "Puff Adder", "confusable": "Adder"}, {"target": "Horned Adder", "confusable": "Adder"}]
    module = InContext(Nearest(), metric=NWayAccuracy())
    data = species(root, n_context=1, n_way=3, pairs=pairs, n_orders=3)
    assert scores_of(tmp_path, module, data)["acc_macro"] == 1


def test_answers_are_kept_and_a_question_that_fails_loses_no_other(root: Path, tmp_path: Path) -> None:
    store, data = str(tmp_path / "answers"), partial(species, root, n_context=1)
    for first, message in ((4, "2 of 3 questions"), (3, "1 of 2 questions")):
        away = rf"{message} were not answered \(the model is away\); the others are kept"
        with pytest.raises(BackendError, match=away):
            scores_of(tmp_path, module_of(Nearest(fail_from=first), store=store), data())
    last = Nearest()
    for _ in range(2):
        assert scores_of(tmp_path, module_of(last, store=store), data())["acc_macro"] == 1
    assert len(last.asked) == 8 - 4 - 3
    with pytest.raises(BackendError, match=r"1 of 3 questions were not answered .*; set store to keep the others"):
        scores_of(tmp_path, module_of(Nearest(fail_from=5)), data())


def test_drawn_answers_depend_on_the_place_of_the_question(root: Path) -> None:
    module = InContext(Nearest(), temperature=0.7)
    seeds = [module.request(picture("Adder", 1), "Which?", place=place).seed for place in (0, 1, 0)]
    assert seeds[0] == seeds[2] != seeds[1]
    assert InContext(Nearest()).request(picture("Adder", 1), "Which?").seed is None
    marked = InContext(Nearest()).request(picture("Adder", 1), "<image> or b?\nWhich?")
    assert marked.messages[0]["content"][1]["text"] == "\u2039image\u203a or b?\nWhich?"


def test_what_cannot_be_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A question has 3 pictures, 2 of them examples, and nearest 1 takes 2: lower"):
        scores_of(tmp_path, module_of(Nearest(images_per_message=2)), species(root, n_context=1))
    with pytest.raises(TypeError, match="InContext learns nothing, so `fit` has nothing to do: run `test`"):
        trainer(tmp_path).fit(InContext(Nearest()), species(root))


def test_the_command_line_asks_a_local_model(tiny_llava: str, root: Path, tmp_path: Path, quiet: list[str]) -> None:
    line = ["test", "--model=InContext", "--model.chat=lit_modules.coda.LocalChat", f"--model.chat.model={tiny_llava}"]
    line += ["--model.chat.images_per_message=3", "--model.chat.device=cpu", f"--model.store={tmp_path / 'answers'}"]
    line += ["--model.max_new_tokens=2", "--model.metric=lit_modules.metrics.PairAccuracy", "--data=FewShotPairs"]
    line += [f"--data.root={root}", "--data.n_real=1", "--data.n_context=1", "--data.n_query=1", *quiet]
    line += [f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    cli: Any = main(line)
    assert cli.model.results()["invalid"] >= 0
    assert len(list((tmp_path / "answers" / "calls").glob("*.json"))) == 4
