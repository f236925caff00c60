import json
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from datamodules.affordances.pairs import AffordancePairs
from lit_modules.synthia.pairs.filter import ClipFilter, best
from lit_modules.synthia.pairs.images import EndpointImages, PipelineImages, image_seed
from lit_modules.synthia.pairs.preparation import Preparation
from lit_modules.synthia.pairs.sources import Amounts, Sources
from lit_modules.utils.endpoints import Endpoint, EndpointError
from lit_modules.utils.errors import UsageError
from lit_modules.utils.ontology import Ontology
from lit_modules.utils.run_directory import DirectoryInUse, RunDirectory
from tests.scripted_server import ScriptedServer, captions, chat, image, usual

AMOUNTS = Amounts(num_pairs=3, test_pairs=1, captions=2, keep=1, negatives=1)


@pytest.fixture(scope="module")
def ontology(repository: Path) -> Ontology:
    return Ontology.from_file(repository / "tests" / "data" / "synthia" / "mini.yaml")


def remote(server: ScriptedServer, **more: Any) -> Sources:
    settings: dict[str, Any] = {"pause": 0.001, "timeout": 5.0, "attempts": 3, **more}
    writer, painter = (Endpoint(server.url, model, **settings) for model in ("writer", "painter"))
    return Sources(writer, EndpointImages(painter, 8), (("model", "painter"),))


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_from_an_ontology_to_batches(ontology: Ontology, stable_diffusion: str, clip: str, tmp_path: Path) -> None:
    sources = Sources(None, PipelineImages(stable_diffusion, 8, 2, device="cpu"), (("model", "tiny"),), None, clip)
    seen: list[str] = []

    def progress(title: str, total: int) -> Any:
        return nullcontext(lambda: seen.append(title))

    preparation = Preparation(ontology, tmp_path, AMOUNTS, sources, progress=progress)
    assert preparation.counts()["images"] == (7, 0)
    assert preparation.run() == []
    concepts = len(preparation.concepts)
    assert {title: seen.count(title) for title in seen} == {
        "captions": 4, "images": 7, "negatives": concepts, "filter": 4
    }  # fmt: skip
    assert all(total == done for total, done in preparation.counts().values())
    rows = [row for number in range(3) for row in read(tmp_path, f"stage{number}")]
    assert [len(row["pos_paths"]) for row in [*rows, *read(tmp_path, "test")]] == [1, 1, 1, 1]
    assert {*rows[0]["neg_paths"]} == {*rows[0]["neg_prompts"]}
    maker, seed = PipelineImages(stable_diffusion, 8, 2, device="cpu"), image_seed(42, "a ring")
    assert 0 <= seed < 2**63
    assert maker("a ring", seed) == maker("a ring", seed) != maker("a ring", seed + 1)
    data = AffordancePairs(str(tmp_path), image_size=8, batch_size=1, epochs=3)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["pos"].shape == (1, 3, 8, 8)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}
    seen.clear()
    assert Preparation(ontology, tmp_path, AMOUNTS, sources, progress=progress).run() == []
    assert seen == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "images").rglob("*.png")}


def test_the_filter_follows_the_formula(clip: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 8, 8, 3), generator=generator, dtype=torch.uint8)
    images = [Image.fromarray(each.numpy()) for each in pixels]
    scores = ClipFilter(clip).scores(images, ["sit", "take_off"], ["sofa", "bus"])
    network: Any = CLIPModel.from_pretrained(clip).eval()
    processor: Any = CLIPProcessor.from_pretrained(clip)
    texts = ["an object used to sit", "an object used to take off", "sofa", "bus"]
    for picture, score in zip(images, scores, strict=True):
        cosines = []
        for text in texts:
            with torch.no_grad():
                output = network(**processor(text=[text], images=[picture], return_tensors="pt"))
            cosines.append(float(torch.cosine_similarity(output.image_embeds, output.text_embeds)))
        assert score == pytest.approx((cosines[0] + cosines[1]) / 2 - max(cosines[2:]), abs=1e-5)
    assert len(set(scores)) == 3
    assert ClipFilter(clip).scores([], ["sit"], []) == []
    assert best([0.5, 0.1, 0.5, 0.7], 2) == [0, 3]


def test_a_run_that_breaks_goes_on_and_asks_nothing_twice(ontology: Ontology, tmp_path: Path) -> None:
    def fails(request: dict[str, Any], number: int) -> Any:
        return (401, {}) if number == 6 else usual(request)

    asked = []
    with ScriptedServer(fails) as server:
        preparation = Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=1)
        with pytest.raises(EndpointError, match="answered HTTP 401"):
            preparation.run()
        asked += [*server.requests[:6]]
    # as if it had been killed while it wrote
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write('{"pair_id": 3, "capt')
    (tmp_path / "images" / "00000" / "01.png.part").write_bytes(b"half")
    with ScriptedServer() as server:
        preparation = Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=3)
        assert preparation.run(["curriculum", "captions", "images", "negatives", "filter"]) == []
        asked += server.requests
        assert server.most_busy <= 3
    words = [json.dumps(request) for request in asked]
    assert len(words) == 4 + 7 + len(preparation.concepts)
    assert len(set(words)) == len(words)
    assert len((tmp_path / "captions.jsonl").read_text().split("\n")[:-1]) == 4
    assert sum("images" in path for path in server.paths) == len(server.paths)


def test_an_interrupt_keeps_what_was_paid_for(ontology: Ontology, tmp_path: Path) -> None:
    main = threading.get_ident()

    def interrupts(request: dict[str, Any], number: int) -> Any:
        if number == 5:
            import signal

            signal.pthread_kill(main, signal.SIGINT)
        return usual(request)

    steps: Any = ["curriculum", "captions", "images"]
    with ScriptedServer(interrupts) as server:
        with pytest.raises(KeyboardInterrupt):
            Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=2).run(steps)
        first = len(server.requests)
    kept = len(read(tmp_path, "captions")) + len(list(tmp_path.glob("images/*/*.png")))
    assert kept == first
    with ScriptedServer() as server:
        Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=2).run(steps)
    assert first + len(server.requests) == 4 + 7


def test_refused_and_malformed_items_are_listed(ontology: Ontology, tmp_path: Path) -> None:
    steps: Any = ["curriculum", "captions", "images"]
    first = Preparation(ontology, tmp_path, AMOUNTS).curriculum.train[0].pos_prompts

    def answer(request: dict[str, Any], number: int) -> Any:
        if "messages" in request:
            return chat("Sorry!") if number == 1 else captions(request)
        if request["prompt"].endswith(f"disc made to {' and '.join(first)}."):
            return 400, {"error": {"message": "not this", "code": "moderation_blocked"}}
        return image(request)

    with ScriptedServer(answer) as server:
        problems = Preparation(ontology, tmp_path, AMOUNTS, remote(server, attempts=1), workers=1).run(steps)
    assert [problem.split(" (")[0] for problem in problems] == ["captions of pair 1", "image 1 of pair 0: HTTP 400"]
    assert problems[0].endswith("the answer is no JSON: Sorry!")
    assert read(tmp_path, "skipped") == [{"pair_id": 0, "number": 1, "reason": "HTTP 400 (not this)"}]
    with ScriptedServer(answer) as server:
        server.requests.append({})  # so that nothing is malformed
        server.requests.append({})
        again = Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=1).run(steps)
    assert again == []
    # the missing captions and their images, and not the image that was refused
    assert len(server.requests) == 2 + 3


def test_what_is_no_refusal_of_the_content_is_asked_again(ontology: Ontology, tmp_path: Path) -> None:
    steps: Any = ["curriculum", "captions", "images"]
    unknown = (400, {"error": {"message": "Unknown parameter", "code": "unknown_parameter"}})
    cut = (200, {"choices": [{"message": {"content": ""}, "finish_reason": "length"}]})

    def ill(request: dict[str, Any], number: int) -> Any:
        return {1: cut, 5: unknown}.get(number) or usual(request)

    with ScriptedServer(ill) as server:
        problems = Preparation(ontology, tmp_path, AMOUNTS, remote(server, attempts=1), workers=1).run(steps)
    assert len(problems) == 2
    assert not (tmp_path / "skipped.jsonl").exists()
    with ScriptedServer() as server:
        preparation = Preparation(ontology, tmp_path, AMOUNTS, remote(server), workers=1)
        assert preparation.run(steps) == []
    assert all(total == done for total, done in map(preparation.counts().get, ("captions", "images")))  # type: ignore[misc]


def test_a_wrong_request_is_not_repeated_for_all(ontology: Ontology, tmp_path: Path) -> None:
    def answer(request: dict[str, Any], number: int) -> Any:
        return captions(request) if "messages" in request else (400, {"error": {"message": "wrong size"}})

    amounts = Amounts(num_pairs=6, test_pairs=1, captions=3)
    with ScriptedServer(answer) as server:
        preparation = Preparation(ontology, tmp_path, amounts, remote(server), workers=1)
        failed = r"first 8 requests all failed, the last one so: HTTP 400 \(wrong size\)"
        with pytest.raises(EndpointError, match=failed):
            preparation.run(["curriculum", "captions", "images"])
        assert len(server.requests) == 7 + 8
    assert not (tmp_path / "skipped.jsonl").exists()


def test_changed_inputs_are_refused(ontology: Ontology, tmp_path: Path) -> None:
    Preparation(ontology, tmp_path, AMOUNTS).run(["curriculum", "captions"])
    before = read(tmp_path, "captions")
    other = Amounts(num_pairs=4, test_pairs=1, captions=2, keep=1)
    with pytest.raises(ValueError, match=r"step curriculum .* with num pairs=3, got num pairs=4\. Add `--steps curric"):
        Preparation(ontology, tmp_path, other).run(["curriculum"])
    sources = Sources(Endpoint("http://127.0.0.1:9", "m"))
    with pytest.raises(ValueError, match=r"step captions .* was made with captions=2, got captions=5"):
        Preparation(ontology, tmp_path, Amounts(3, 1, captions=5), sources).run(["captions"])
    assert read(tmp_path, "captions") == before
    household = Ontology.from_file("household")
    with pytest.raises(ValueError, match="was made with another content of ontology"):
        Preparation(household, tmp_path, AMOUNTS).run(["curriculum"])
    assert Preparation(household, tmp_path, other).run(["curriculum", "captions"], fresh=True) == []
    assert len(read(tmp_path, "captions")) == 5
    assert json.loads((tmp_path / "manifest.json").read_text())["curriculum"]["num pairs"] == 4


def test_real_images_of_concepts(ontology: Ontology, tmp_path: Path) -> None:
    root, folder = tmp_path / "real", tmp_path / "pairs"
    sources = Sources(negative_images=root)
    preparation = Preparation(ontology, folder, AMOUNTS, sources)
    preparation.run(["curriculum"])
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*real of images"):
        preparation.run(["negatives"])
    for name in preparation.concepts[1:]:
        (root / name.title()).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / name.title() / "one.JPG", "JPEG")
        (root / name.title() / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=f"1 have none: {preparation.concepts[0]}"):
        preparation.run(["negatives"])
    (root / preparation.concepts[0]).mkdir()
    Image.new("RGB", (8, 8)).save(root / preparation.concepts[0] / "a.png")
    assert preparation.run(["negatives"]) == []
    names = sorted(path.relative_to(folder).as_posix() for path in (folder / "negatives").rglob("*.*"))
    assert names == ["negatives/0000/00.png", *(f"negatives/{place:04d}/00.jpg" for place in range(1, len(names)))]
    Image.new("RGB", (8, 8), "red").save(root / preparation.concepts[0] / "a.png")
    with pytest.raises(ValueError, match=r"step negatives .* was made with another content of images of concepts"):
        preparation.run(["negatives"])


def test_steps_and_folders_that_lack_something(ontology: Ontology, tmp_path: Path) -> None:
    preparation = Preparation(ontology, tmp_path / "new", AMOUNTS)
    with pytest.raises(ValueError, match="has no curriculum yet; run the step curriculum first"):
        preparation.run(["captions"])
    preparation.run(["curriculum", "captions"])
    with pytest.raises(ValueError, match=r"items have no image: pair 0, pair 1.* Run the steps images and negatives"):
        preparation.run(["filter"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "stage0.jsonl").write_text("mine")
    with pytest.raises(UsageError, match="holds something that is no preparation of pairs; take another folder"):
        Preparation(ontology, foreign, AMOUNTS).run(["curriculum"], fresh=True)
    assert (foreign / "stage0.jsonl").read_text() == "mine"
    with (tmp_path / "new" / "captions.jsonl").open("a") as file:
        file.write("damaged\n")
    with pytest.raises(ValueError, match=r"captions\.jsonl:5: a line must be JSON, got 'damaged'"):
        preparation.run(["captions"])
    with RunDirectory(tmp_path), pytest.raises(DirectoryInUse, match="Another process writes to the preparation"):
        Preparation(ontology, tmp_path, AMOUNTS).run(["curriculum"])
    with pytest.raises(ValueError, match="keep must be at most the 2 captions of a pair, got 3"):
        Amounts(captions=2)
