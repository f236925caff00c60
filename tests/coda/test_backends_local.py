import inspect
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig
from transformers.utils.import_utils import is_serve_available

from lit_modules.coda.backends.local import ClipEmbedder, DiffusersImages, LocalChat
from lit_modules.coda.backends.protocols import (
    BackendError,
    BatchChatModel,
    ChatRequest,
    Embedder,
    ImageGenerator,
    Reply,
    user_message,
)
from lit_modules.coda.backends.remote import BoundedEndpoint, RemoteChat
from lit_modules.utils.kv_cache import cache_argument
from lit_modules.utils.model_versions import model_version
from tests.coda.fakes import discs, run_pipeline
from tests.coda.tiny_llava import write


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Model whose answers differ, and are to be taken without the repetition penalty of its settings."""
    folder = tmp_path_factory.mktemp("llava")
    write(folder, spread=0.3)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.3}))
    return str(folder)


def on_weights_of(chat: LocalChat, batch_size: int) -> LocalChat:
    made = LocalChat(chat.model, device="cpu", batch_size=batch_size)
    made.__dict__["_loaded"] = chat._loaded
    return made


@pytest.fixture(scope="module")
def chat(llava: str) -> LocalChat:
    return LocalChat(llava, device="cpu", batch_size=3)


def picture(seed: int, width: int = 20, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def requests(temperature: float = 0.0) -> list[ChatRequest]:
    """Questions of many lengths, with and without images, some of them on the same one."""
    found, shown = [], [picture(number, 20, 20 + 10 * number) for number in range(4)]
    for number in range(10):
        text = "what is it " + " ".join("abcdefghij"[: 1 + 7 * number % 10])
        images = (shown[number % 4],) if number % 3 else ()
        message = user_message(text, len(images))
        found.append(ChatRequest((message,), images, 12 if number % 4 else 5, temperature, seed=number))
    return found


def one_by_one(chat: LocalChat, asked: list[ChatRequest]) -> Iterator[Reply]:
    for one in asked:
        yield chat.chat(one.messages, one.images, one.max_new_tokens, one.temperature, one.schema, one.seed)


@pytest.fixture
def reads(chat: LocalChat) -> Iterator[list[tuple[int, int]]]:
    """Rows and tokens of each pass that reads images or begins a batch."""
    network = chat._loaded[1]
    forward, found, cached = network.forward, [], cache_argument(network)

    def counted(**given: Any) -> Any:
        if given.get(cached) is None or not given[cached].get_seq_length():
            found.append(tuple(given["input_ids"].shape))
        return forward(**given)

    counted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    network.forward = counted
    yield found
    del network.forward


@pytest.mark.parametrize("shares", [None, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batches_give_the_answers_of_single_questions(
    chat: LocalChat, temperature: float, shares: bool | None, reads: list[tuple[int, int]]
) -> None:
    asked = requests(temperature)
    chat._shares = shares
    together = dict(chat.chat_many(asked))
    rows = [rows for rows, _ in reads]
    assert (sum(rows), max(rows)) == (8 if shares is None else 10, 3)
    assert chat._shares is (shares is None)
    chat._shares = False
    single = list(one_by_one(chat, asked))
    chat._shares = None
    assert [together[number] for number in range(len(asked))] == single
    assert len({reply.text for reply in single}) > 3
    assert all(0 < reply.usage.output_tokens <= one.max_new_tokens for reply, one in zip(single, asked, strict=True))
    assert single[0].model == chat.identity


def on_one_image(number: int = 4) -> list[ChatRequest]:
    image, texts = picture(1), ["what is it a", "what is it b c d", "what is it", "yes"]
    return [ChatRequest((user_message(text, 1),), (image,), 6) for text in texts[:number]]


def test_an_image_is_read_once_by_the_settings_of_the_model(chat: LocalChat, reads: list[tuple[int, int]]) -> None:
    wide, asked = on_weights_of(chat, 8), on_one_image()
    together = dict(wide.chat_many(asked))
    assert [rows for rows, _ in reads] == [1]
    chat._shares = False
    single = list(one_by_one(chat, asked))
    chat._shares = None
    assert [together[number] for number in range(4)] == single
    processor, network = chat._loaded
    (letter,) = processor.tokenizer("x", add_special_tokens=False)["input_ids"]
    network.generation_config.suppress_tokens = [token for token in range(len(processor.tokenizer)) if token != letter]
    replies = [reply.text for _, reply in wide.chat_many(asked) if isinstance(reply, Reply)]
    network.generation_config.suppress_tokens = None
    assert (replies, wide._shares) == (["x" * 6] * 4, True)


def test_a_cache_with_a_sliding_window_is_not_shared(llava: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    config: Any = LlavaNextConfig.from_pretrained(llava)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "bos_token_id", "eos_token_id", "pad_token_id")
    sizes: dict[str, Any] = {name: getattr(config.text_config, name) for name in names}
    config.text_config = MistralConfig(**sizes, sliding_window=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    asked, sliding = on_one_image(), LocalChat(str(folder), device="cpu")
    together = dict(sliding.chat_many(asked))
    assert sliding._shares is False
    assert [together[number] for number in range(4)] == list(one_by_one(sliding, asked))


def test_the_likeliest_answer_is_that_of_the_model(chat: LocalChat) -> None:
    one = requests()[1]
    processor, network = chat._loaded
    inputs = chat._inputs([one])
    assert sorted(inputs) == ["attention_mask", "image_sizes", "input_ids", "pixel_values"]
    with torch.no_grad():
        tokens = network.generate(**inputs, do_sample=False, max_new_tokens=12, repetition_penalty=1.0)
    wanted = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    (reply,) = one_by_one(chat, [one])
    assert reply.text == wanted.strip()
    assert reply.usage.input_tokens == inputs["input_ids"].shape[1]


def test_draws_depend_on_their_seeds_alone_and_follow_the_scores(chat: LocalChat) -> None:
    asked = [ChatRequest((user_message("what is it"),), (), 1, 0.5, seed=seed) for seed in range(300)]
    wide, words = on_weights_of(chat, 300), chat._loaded[0].tokenizer
    texts = [reply.text for _, reply in sorted(wide.chat_many(asked)) if isinstance(reply, Reply)]
    assert texts == [reply.text for _, reply in sorted(wide.chat_many(asked)) if isinstance(reply, Reply)]
    with torch.no_grad():
        chances = (chat._loaded[1](**chat._inputs(asked[:1])).logits[0, -1].float() / 0.5).softmax(-1)
    shares: dict[str, float] = {}
    for token, chance in enumerate(chances.tolist()):
        text = words.decode([token], skip_special_tokens=True).strip()
        shares[text] = shares.get(text, 0.0) + chance
    likely = max((text for text in shares if text), key=lambda text: shares[text])
    assert shares[likely] > 0.2
    assert texts.count(likely) / 300 == pytest.approx(shares[likely], abs=0.1)


def test_options_are_scored_by_their_mean_log_probability(chat: LocalChat) -> None:
    image = picture(1)
    message = user_message("what is it", 1)
    scores = chat.score_options([message], [image], ["red disc", "blue disc", "yes"])
    inputs = dict(chat._inputs([ChatRequest((message,), (image,))]))
    tokens = torch.tensor(chat._loaded[0].tokenizer(["red disc"], add_special_tokens=False)["input_ids"])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        chances = chat._loaded[1](**inputs).logits[0, -tokens.shape[1] - 1 : -1].log_softmax(-1)
    wanted = sum(float(chances[place, token]) for place, token in enumerate(tokens[0])) / tokens.shape[1]
    assert scores[0] == pytest.approx(wanted, abs=1e-5)
    assert len(set(scores)) == 3
    with pytest.raises(ValueError, match=r"not empty, at least one, got \['a', ''\]"):
        chat.score_options([message], [image], ["a", ""])


def test_a_question_that_is_too_long_is_an_error_of_its_own(chat: LocalChat) -> None:
    assert isinstance(chat, BatchChatModel)
    long = ChatRequest((user_message("a " * 600),), (), 5)
    replies = dict(chat.chat_many([requests()[0], long]))
    assert isinstance(replies[0], Reply)
    with pytest.raises(BackendError, match=r"question takes \d+ tokens and its answer up to 5, more than the 512 that"):
        raise replies[1]
    with pytest.raises(ValueError, match="0 places for images and 1 images"):
        chat.chat([user_message("a")], [picture(0)], 5, 0.0)


@pytest.mark.slow
def test_a_served_model_answers_as_the_local_one(llava: str, chat: LocalChat, tmp_path: Path) -> None:
    if not is_serve_available():
        pytest.skip('transformers serve needs transformers[serving]: pip install "lit-modules[serving]"')
    folder = shutil.copytree(llava, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1.0}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log)
    try:
        patient = BoundedEndpoint(f"http://127.0.0.1:{port}/v1", str(folder), pause=1.0, longest_pause=1.0, attempts=90)
        remote = RemoteChat(patient, token_field="max_completion_tokens")
        one = requests()[1]
        (reply,) = (found for _, found in remote.chat_many([one]))
    finally:
        server.terminate()
        server.wait(30)
    assert isinstance(reply, Reply), (str(reply), (tmp_path / "log").read_text())
    (local,) = one_by_one(chat, [one])
    assert (reply.text.strip(), reply.usage.input_tokens) == (local.text, local.usage.input_tokens)


def test_a_processor_without_a_setting_is_refused_by_its_name(llava: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    place = folder / "processor_config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps({**settings, "patch_size": None}))
    message = [user_message("a")]
    with pytest.raises(ValueError, match=r"has no patch_size, .* add patch_size to its processor_config.json"):
        LocalChat(str(folder), device="cpu").chat(message, [], 5, 0.0)
    place.write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template; take an instruction-tuned model"):
        LocalChat(str(folder), device="cpu").chat(message, [], 5, 0.0)


def test_pipelines_make_the_picture_of_a_seed(stable_diffusion: str) -> None:
    images: ImageGenerator = DiffusersImages(stable_diffusion, device="cpu")
    assert images.identity.endswith(" (float32)")
    first = images.generate("a disc", None, 3, 16, 24, 2, 0.0)
    assert (first.size, first.mode) == ((16, 24), "RGB")
    assert first.tobytes() == images.generate("a disc", None, 3, 16, 24, 2, 0.0).tobytes()
    assert first.tobytes() != images.generate("a disc", None, 4, 16, 24, 2, 0.0).tobytes()
    guided = images.generate("a disc", None, 3, 16, 24, 2, 7.0)
    assert guided.tobytes() != images.generate("a disc", "text", 3, 16, 24, 2, 7.0).tobytes()
    more = DiffusersImages(stable_diffusion, device="cpu", options={"true_scale": 2})
    assert more.identity.endswith(" (float32, true_scale=2)")
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline of .* does not take true_scale"):
        more.generate("a disc", None, 3, 16, 24, 2, 0.0)

    class Checked:
        def __call__(
            self, prompt: str, width: int, height: int, num_inference_steps: int, guidance_scale: float, generator: Any
        ) -> Any:
            return SimpleNamespace(images=[first], nsfw_content_detected=[True])

    more.__dict__["_pipeline"], more.options = Checked(), {}
    with pytest.raises(BackendError, match=r"The safety checker of .* took the picture out"):
        more.generate("a disc", None, 3, 16, 24, 2, 0.0)


def test_the_embedder_gives_the_models_vectors(clip: str) -> None:
    network: Any = CLIPModel.from_pretrained(clip).eval()
    processor: Any = CLIPProcessor.from_pretrained(clip)
    embedder = ClipEmbedder(clip, device="cpu")
    known: Embedder = embedder
    pictures, texts = [picture(0), picture(1, 30, 20).convert("L")], ["red disc", "blue tail"]
    shown = [image.convert("RGB") for image in pictures]
    with torch.no_grad():
        wanted = network(**processor(text=texts, images=shown, padding=True, return_tensors="pt"))
    torch.testing.assert_close(known.embed_images(pictures), wanted.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(known.embed_texts(texts), wanted.text_embeds, atol=1e-5, rtol=1e-4)
    assert embedder.count_tokens("red disc") == len(processor.tokenizer("red disc")["input_ids"])
    assert known.identity == model_version(clip, None, "config.json")


def test_the_pipeline_runs_on_local_models(clip: str, stable_diffusion: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"kinds": ("textual_contrastive",), "verification": "none", "guards": False, "steps": 1}
    models = {
        "generator": DiffusersImages(stable_diffusion, device="cpu"),
        "embedder": ClipEmbedder(clip, device="cpu"),
    }
    results = [run_pipeline(tmp_path / "store", [discs(tmp_path)], **models, **more) for _ in range(2)]
    assert [(unit.accepted, unit.failure) for unit in results[0].units] == [(2, None)] * 2
    assert (results[1].units, results[1].counts) == (results[0].units, {})


def test_a_model_that_is_missing_is_named_and_a_moved_one_is_the_same(llava: str, tmp_path: Path) -> None:
    moved = shutil.copytree(llava, tmp_path / Path(llava).name)
    assert LocalChat(str(moved)).identity == LocalChat(llava).identity
    assert str(tmp_path) not in LocalChat(str(moved)).identity
    (moved / "config.json").unlink()
    for folder, message in (
        (str(moved), "has no config.json; give the folder of a saved model"),
        ("no/such/model", "'no/such/model' is neither a folder nor a model that the Hub gives"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            _ = LocalChat(folder).identity
