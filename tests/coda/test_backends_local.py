import inspect
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils.import_utils import is_serve_available

from lit_modules.coda.augmentation.pipeline import CoDAPipeline
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
from lit_modules.coda.core.store import Store
from lit_modules.utils.kv_cache import cache_argument
from lit_modules.utils.model_versions import model_version
from tests.coda.fakes import FakeChat, discs, tiny

WORDS = ["[PAD]", "[BOS]", "[UNK]", "[EOS]", "<image>", "user", "assistant", "[UNUSED]"]
WORDS += [*"abcdefghijklmnopqrstuvwxyz", "red", "blue", "disc", "tail", "yes", "no", "what", "is", "it", ":"]
TEMPLATE = (
    "[BOS]{% for message in messages %} {{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {"image_size": 16, "patch_size": 8, **SIZES}
IDS = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0}


def tokenizer() -> Any:
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    made: Any = PreTrainedTokenizerFast(tokenizer_object=plain, **special)  # type: ignore[no-untyped-call]
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llava")
    grid = [[16, 32], [32, 16], [32, 32]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", "vocab_size": len(WORDS), "max_position_embeddings": 128, **SIZES, **IDS},
        image_token_index=WORDS.index("<image>"),
        image_grid_pinpoints=grid,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = LlavaNextForConditionalGeneration(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # so that answers differ
    network.generation_config.eos_token_id = 3
    network.generation_config.repetition_penalty = 1.3
    network.save_pretrained(folder)
    images: Any = LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grid
    )
    build: Any = LlavaNextProcessor
    processor = build(
        images,
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return str(folder)


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


def test_an_image_is_read_once_for_its_questions(chat: LocalChat, reads: list[tuple[int, int]]) -> None:
    pictures = [picture(1), picture(2)]
    texts = ["what is it a", "what is it b c d", "what is it", "yes"]
    asked = [ChatRequest((user_message(text, 1),), (one,), 6) for text in texts for one in pictures]
    wide = LocalChat(chat.model, device="cpu", batch_size=8)
    wide.__dict__["_loaded"] = chat._loaded
    together = dict(wide.chat_many(asked))
    assert [rows for rows, _ in reads] == [2]
    chat._shares = False
    single = list(one_by_one(chat, asked))
    chat._shares = None
    assert [together[number] for number in range(8)] == single
    assert len({reply.text for reply in single}) > 1


def test_settings_of_a_model_are_obeyed_by_the_shared_way(chat: LocalChat) -> None:
    settings = chat._loaded[1].generation_config
    shown = picture(1)
    asked = [ChatRequest((user_message(text, 1),), (shown,), 6) for text in ("what is it", "what")]
    plain = LocalChat(chat.model, device="cpu")
    plain.__dict__["_loaded"] = chat._loaded
    settings.suppress_tokens = list(range(9, len(WORDS)))
    try:
        replies = [found for _, found in plain.chat_many(asked)]
    finally:
        settings.suppress_tokens = None
    assert plain._shares is True
    for reply in replies:
        assert isinstance(reply, Reply)
        assert not set(reply.text.split()) - {*WORDS[:9]}


def test_a_cache_with_a_sliding_window_is_not_shared(llava: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llava, folder)
    config: Any = LlavaNextConfig.from_pretrained(llava)
    sizes: dict[str, Any] = {"vocab_size": len(WORDS), "num_key_value_heads": 2, **SIZES, **IDS}
    config.text_config = MistralConfig(**sizes, sliding_window=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    shown = picture(1)
    texts = ["what is it a", "what is it b c d", "what is it", "yes"]
    asked = [ChatRequest((user_message(text, 1),), (shown,), 6) for text in texts]
    sliding = LocalChat(str(folder), device="cpu")
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
    message = user_message("what is it")
    asked = [ChatRequest((message,), (), 1, 1.5, seed=seed) for seed in range(300)]
    wide = LocalChat(chat.model, device="cpu", batch_size=300)
    wide.__dict__["_loaded"] = chat._loaded
    texts = [reply.text for _, reply in sorted(wide.chat_many(asked)) if isinstance(reply, Reply)]
    assert texts == [reply.text for _, reply in sorted(wide.chat_many(asked)) if isinstance(reply, Reply)]
    with torch.no_grad():
        chances = (chat._loaded[1](**chat._inputs(asked[:1])).logits[0, -1].float() / 1.5).softmax(-1)
    likely = int(chances[8:].argmax()) + 8  # a word and no special token
    assert texts.count(WORDS[likely]) / 300 == pytest.approx(float(chances[likely]), abs=0.1)


def test_options_are_scored_by_their_mean_log_probability(chat: LocalChat) -> None:
    image = picture(1)
    message = user_message("what is it", 1)
    scores = chat.score_options([message], [image], ["red disc", "blue disc", "yes"])
    inputs = dict(chat._inputs([ChatRequest((message,), (image,))]))
    tokens = torch.tensor([[WORDS.index("red"), WORDS.index("disc")]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        chances = chat._loaded[1](**inputs).logits[0, -3:-1].log_softmax(-1)
    wanted = (chances[0, tokens[0, 0]] + chances[1, tokens[0, 1]]) / 2
    assert scores[0] == pytest.approx(float(wanted), abs=1e-5)
    assert len(set(scores)) == 3
    with pytest.raises(ValueError, match=r"not empty, at least one, got \['a', ''\]"):
        chat.score_options([message], [image], ["a", ""])


def test_a_question_that_is_too_long_is_an_error_of_its_own(chat: LocalChat) -> None:
    assert isinstance(chat, BatchChatModel)
    long = ChatRequest((user_message("a " * 200),), (), 5)
    replies = dict(chat.chat_many([requests()[0], long]))
    assert isinstance(replies[0], Reply)
    assert str(replies[1]).startswith("The question takes 205 tokens and its answer up to 5, more than the 128 that")
    with pytest.raises(BackendError, match="The question takes 205 tokens"):
        chat.chat(long.messages, [], 5, 0.0)
    with pytest.raises(ValueError, match=r"batch_tokens must be at least 1 .* got 0, 1 and 1"):
        LocalChat("m", batch_size=0, batch_tokens=1)
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
    first = images.generate("a disc", None, 3, 16, 24, 2, 0.0)
    assert (first.size, first.mode) == ((16, 24), "RGB")
    assert first.tobytes() == images.generate("a disc", None, 3, 16, 24, 2, 0.0).tobytes()
    assert first.tobytes() != images.generate("a disc", None, 4, 16, 24, 2, 0.0).tobytes()
    guided = images.generate("a disc", None, 3, 16, 24, 2, 7.0)
    assert guided.tobytes() != images.generate("a disc", "text", 3, 16, 24, 2, 7.0).tobytes()
    assert images.identity.endswith(" (float32)")
    more = DiffusersImages(stable_diffusion, device="cpu", options={"true_scale": 2})
    assert more.identity.endswith(" (float32, true_scale=2)")
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline of .* does not take true_scale"):
        more.generate("a disc", None, 3, 16, 24, 2, 0.0)

    class Output:
        images = [first]  # noqa: RUF012
        nsfw_content_detected = [True]  # noqa: RUF012

    class Strict:
        def __call__(
            self, prompt: str, width: int, height: int, num_inference_steps: int, guidance_scale: float, generator: Any
        ) -> Output:
            return Output()

    more.__dict__["_pipeline"], more.options = Strict(), {}
    with pytest.raises(BackendError, match=r"The safety checker of .* took the picture out"):
        more.generate("a disc", None, 3, 16, 24, 2, 0.0)
    with pytest.raises(ValueError, match=r"Strict of .* does not take negative_prompt"):
        more.generate("a disc", "text", 3, 16, 24, 2, 7.0)


def save_clip(folder: Path) -> Any:
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 12, "projection_size": 8, **SIZES, **IDS}
    build: Any = CLIPModel
    network = build(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=6)).eval()
    network.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return network


def test_the_embedder_gives_the_models_vectors(tmp_path: Path) -> None:
    network = save_clip(tmp_path)
    embedder = ClipEmbedder(str(tmp_path), device="cpu")
    known: Embedder = embedder
    pictures = [picture(0), picture(1, 30, 20).convert("L")]
    rows = known.embed_images(pictures)
    shown = [one.convert("RGB") for one in pictures]
    loader: Any = AutoImageProcessor
    pixels = loader.from_pretrained(tmp_path)(images=shown, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = network.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(rows, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)
    texts = known.embed_texts(["red disc", "blue tail"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert texts.shape == (2, 6)
    assert embedder.count_tokens("red disc") == 2
    assert known.identity == model_version(str(tmp_path), None, "config.json")


def test_the_pipeline_runs_on_local_models(
    chat: LocalChat, stable_diffusion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path / "clip")
    models = DiffusersImages(stable_diffusion, device="cpu"), ClipEmbedder(str(tmp_path / "clip"), device="cpu")
    settings = tiny(kinds=("textual_contrastive",), verification="none", guards=False, steps=1)
    task = discs(tmp_path)
    with Store(tmp_path / "store") as store:
        result = CoDAPipeline(store, settings, FakeChat(), *models).run([task])
        again = CoDAPipeline(store, settings, FakeChat(), *models).run([task])
    assert [(unit.accepted, unit.failure) for unit in result.units] == [(2, None)] * 2
    assert (again.units, again.counts) == (result.units, {})
    with Store(tmp_path / "other") as store:
        monkeypatch.setattr(type(chat), "_limit", 4096)
        told = CoDAPipeline(store, tiny(kinds=("textual_contrastive",), feature_tokens=4), chat, *models).run([task])
    assert told.counts["features"].calls > 0
    assert all("No features" in str(unit.failure) for unit in told.units)  # its words are no list


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
