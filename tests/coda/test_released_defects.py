"""The released code's defects, numbered as known; each test shows that this code does not have one of them.

Others are held elsewhere: 2 by the recipes (``test_configs``), 6 to 9 and 11 by ``test_defect_*`` of ``test_parsing``,
``test_pipeline``, ``test_images``, ``test_features`` and ``tests/metrics``.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.few_shot.few_shot import FewShotPairs
from datamodules.few_shot.selection import Method
from lit_modules.coda.backends.local import LocalChat
from lit_modules.coda.backends.protocols import user_message
from lit_modules.coda.coda import CoDA
from lit_modules.coda.core.conversations import IGNORED, check_conversation, conversation
from lit_modules.metrics.few_shot import PairAccuracy
from tests.coda.test_updating import make, trainer

NAMES = ("Puff Adder", "Adder", "Horned Adder")
PAIRS = [{"target": name, "confusable": "Adder"} for name in ("Puff Adder", "Horned Adder")]


def noise(seed: int, size: tuple[int, int] = (44, 30)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three species in two pairs, and attributes of one of them."""
    folder = tmp_path_factory.mktemp("species")
    for place, name in enumerate(NAMES):
        for split, number, first in (("train", 4, 0), ("test", 3, 20), ("synthetic/train", 4, 40)):
            inner = folder / split / name.replace(" ", "_")
            inner.mkdir(parents=True)
            for index in range(number):
                noise(100 * place + first + index).save(inner / f"{index}.png")
    (folder / "pairs.json").write_text(json.dumps(PAIRS))
    features = [{"target": "Puff Adder", "confusable": "Adder", "features": ["a broad head"]}]
    (folder / "features.json").write_text(json.dumps(features))
    return folder


def species(root: Path, **more: Any) -> FewShotPairs:
    return FewShotPairs(str(root), **{"n_real": 2, "n_query": 2, "batch_size": 4, **more})


def baseline(root: Path, method: str, number: int = 3, **more: Any) -> FewShotPairs:
    """Return the data with a method's further pictures beside two real ones."""
    made = {} if method == "real" else {"n_synthetic": number}
    where = {"synthetic_root": str(root / "synthetic")} if method in ("synthetic", "armada_lite") else {}
    return species(root, method=method, **made, **where, **more)


def batches(data: FewShotPairs, name: str = "train") -> list[dict[str, Any]]:
    loader = data.train_dataloader() if name == "train" else data.test_dataloader()
    return list(loader)


def evaluated(module: CoDA, data: FewShotPairs, folder: Path) -> tuple[str, list[str]]:
    run = trainer(folder)
    run.test(module, data, verbose=False)
    answers = [row["answer"] for row in run.predict(module, data.test_dataloader()) or []]  # type: ignore[call-overload]
    return json.dumps(module.results()), [text for row in answers for text in row]


def test_defect_1_each_training_question_has_exactly_one_picture_and_the_model_sees_it(
    tiny_llava: str, root: Path
) -> None:
    module = make(tiny_llava)
    token = module.processor.tokenizer.convert_tokens_to_ids("<image>")
    for batch in batches(species(root)):
        encoded = module.encode(batch["image"], batch["prompt"], batch["answer"])
        rows = (encoded["input_ids"] == token).int()
        starts = (rows[:, 1:] - rows[:, :-1] == 1).sum(1)
        assert starts.tolist() == [1] * len(batch["prompt"]) == [1] * len(encoded["pixel_values"])
        with torch.no_grad():
            other = {**batch, "image": [noise(900 + place) for place in range(len(batch["image"]))]}
            assert abs(float(module.loss(batch) - module.loss(other))) > 1e-7
    question = conversation("Which is it?")
    for parts in ([], [{"type": "image"}, {"type": "image"}]):
        wrong = [{"role": "user", "content": [*parts, question[0]["content"][1]]}]
        with pytest.raises(ValueError, match=f"A turn of the user must have exactly one image, got {len(parts)}"):
            check_conversation(wrong, 1)


def test_defect_3_one_template_asks_and_trains_and_each_row_has_labels(tiny_llava: str, root: Path) -> None:
    module = make(tiny_llava)
    tokenizer = module.processor.tokenizer
    chat_ml = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"
    )
    for template, end in ((module.processor.chat_template, ""), (chat_ml, "<|im_end|>")):
        module.processor.chat_template = template
        for batch in batches(species(root)):
            asked = module.encode(batch["image"], batch["prompt"])
            trained = module.encode(batch["image"], batch["prompt"], batch["answer"])
            for row, answer in enumerate(batch["answer"]):
                question = asked["input_ids"][row][asked["attention_mask"][row] == 1]
                whole = trained["input_ids"][row][trained["attention_mask"][row] == 1]
                labels = trained["labels"][row][trained["labels"][row] != IGNORED]
                assert torch.equal(whole[: len(question)], question)
                assert torch.equal(whole[len(question) :], labels)
                assert tokenizer.decode(labels) == f"{answer}{end}</s>"


def test_defect_4_training_and_evaluation_process_pictures_alike(tiny_llava: str, root: Path) -> None:
    module = make(tiny_llava)
    batch = batches(species(root))[0]
    trained = module.encode(batch["image"], batch["prompt"], batch["answer"])
    asked = module.encode(batch["image"], batch["prompt"])
    assert trained["pixel_values"].shape[1] > 1  # in tiles, not one padded square
    for name in ("pixel_values", "image_sizes"):
        assert torch.equal(trained[name], asked[name])


def test_defect_5_attributes_at_test_time_are_off_by_default_and_alike_for_all_methods(root: Path) -> None:
    assert inspect.signature(FewShotPairs).parameters["feature_context"].default is False
    for switch in ({}, {"feature_context": True}):
        prompts = []
        for method in get_args(Method):
            data = baseline(root, method, features=str(root / "features.json"), **switch)
            prompts.append([text for batch in batches(data, "test") for text in batch["prompt"]])
        assert all(own == prompts[0] for own in prompts)
        assert any("a broad head" in text for text in prompts[0]) == bool(switch)


def test_defect_6_evaluation_is_greedy_and_the_test_pictures_have_a_split_and_a_seed_of_their_own(
    tiny_llava: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert inspect.signature(CoDA).parameters["temperature"].default == 0
    results = []
    for seed in (0, 1):
        module = make(tiny_llava, seed=seed, metric=PairAccuracy(resamples=20))
        torch.manual_seed(seed)
        results.append(evaluated(module, species(root, seed=seed), tmp_path))
    assert results[0] == results[1]

    def asked(**more: Any) -> list[str]:
        return [path for batch in batches(species(root, **more), "test") for path in batch["path"]]

    usual = asked()
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: reversed(list(listing(self))))
    assert asked() == usual
    assert asked(query_seed=1) != usual
    trained = {path for batch in batches(species(root, n_real=4)) for path in batch["path"]}
    assert not trained & set(usual)


@pytest.mark.parametrize("method", get_args(Method)[1:])
def test_defect_9_as_many_further_pictures_as_were_asked_for(root: Path, method: str) -> None:
    for number in (1, 4):
        origins = [origin for batch in batches(baseline(root, method, number)) for origin in batch["origin"]]
        assert origins.count(method) == number * 2 * len(PAIRS)
        assert origins.count("real") == 2 * 2 * len(PAIRS)


def test_defect_10_no_path_or_device_of_a_machine_is_written_down(repository: Path) -> None:
    places = [*repository.glob("lit_modules/coda/**/*.py"), *repository.glob("lit_modules/cli/coda/*.py")]
    places += [*repository.glob("datamodules/few_shot*.py"), *repository.glob("configs/*coda*/*.yaml")]
    assert len(places) > 40
    own = re.compile(r"/(?:home|root|mnt|data\d*|scratch|net|local\w*|Users)/|cuda:\d|CUDA_VISIBLE_DEVICES|[A-Z]:\\\\")
    assert [path.name for path in places if own.search(path.read_text(encoding="utf-8"))] == []


def test_defect_10_a_model_is_loaded_once_for_all_pairs(
    tiny_llava: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForImageTextToText

    loads: list[str] = []
    auto: Any = AutoModelForImageTextToText
    load = auto.from_pretrained
    monkeypatch.setattr(auto, "from_pretrained", lambda name, **more: loads.append(name) or load(name, **more))
    data, module = species(root, n_real=1, n_query=1), make(tiny_llava, metric=PairAccuracy(resamples=0))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert len(data.pairs) == 2
    assert loads == [tiny_llava]
    chat = LocalChat(tiny_llava, device="cpu")
    for pair in data.pairs:
        chat.chat([user_message(f"Is it a {pair.target.name}?", 1)], [noise(1)], 2, 0.0)
    assert loads == [tiny_llava] * 2
