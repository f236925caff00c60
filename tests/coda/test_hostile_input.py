"""Answers, names and pictures of others that are malformed or hostile."""

import io
import json
import random
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.few_shot.few_shot import FewShotPairs
from lit_modules.coda.augmentation.export import export_images
from lit_modules.coda.augmentation.parsing import MalformedAnswer, parse_bits, parse_features, parse_yes_no
from lit_modules.coda.augmentation.tasks import PairTask
from lit_modules.coda.core.answers import normalise_answer, read_answer
from lit_modules.coda.core.concepts import Concept, ConfusablePair
from lit_modules.coda.core.store import Store
from lit_modules.utils.images import read_picture
from tests.coda.fakes import FakeChat, discs, run_pipeline, support

CYRILLIC, FULL_WIDTH = "\u0410dder", "\uff21dder"


@given(st.text(alphabet=st.one_of(st.sampled_from("[]{}()<>\"'\\,:-*1. \nyesno01"), st.characters()), max_size=80))
@settings(max_examples=80, deadline=None)
def test_any_answer_is_read_or_called_malformed(text: str) -> None:
    with suppress(MalformedAnswer):
        found = parse_features(text, ["Adder"], max_features=4, max_words=3)
        assert len(found.features) <= 4
        assert all(len(feature.split()) <= 3 and feature.isprintable() for feature in found.features)
    with suppress(MalformedAnswer):
        assert len(parse_bits(text, 3)) == 3
    with suppress(MalformedAnswer):
        assert parse_yes_no(text) in (True, False)
    assert read_answer(text, ["Adder", "Puff Adder"]) in (0, 1, None)


@pytest.mark.parametrize(
    "answer",
    [
        *("[" * 100_000, "[" * 50_000 + "]" * 50_000, "[['" * 30_000, "[1," * 30_000, "[[1]," * 20_000),
        *("\n" * 100_000, "(" * 5_000 + ")" * 5_000, "the " * 2_500, '["a",' * 20_000, "- " * 50_000),
    ],
    ids=range(10),
)
def test_no_answer_takes_long(answer: str) -> None:
    started = time.process_time()
    for read in (parse_features, lambda text: parse_bits(text, 3), parse_yes_no):
        with suppress(MalformedAnswer):
            read(answer)
    read_answer(answer, ["Adder", "Puff Adder"])
    assert time.process_time() - started < 10  # each of them took minutes, and now a second


def test_brackets_and_what_is_in_them_are_left_out_as_they_nest() -> None:
    options = ["Adder", "Puff Adder"]
    assert read_answer("Adder (not a Puff (really) Adder)", options) == 0
    assert read_answer("Adder [a (b] c)", options) == read_answer("Adder )(", options) == 0
    assert normalise_answer("a (b) c") == "b c"


PLAIN: dict[str, Any] = {"kinds": ("textual_contrastive",), "verification": "none", "guards": False}


def test_names_that_look_alike_are_told_apart_and_names_that_are_the_same_are_refused(tmp_path: Path) -> None:
    assert read_answer(CYRILLIC, ["Adder", CYRILLIC]) == 1
    assert read_answer("Adder", ["Adder", CYRILLIC]) == 0
    folders = {Concept("Adder").name: "a", CYRILLIC: "b"}
    pictures = {name: support(tmp_path / inner, "red" if inner == "a" else "blue") for name, inner in folders.items()}
    task = PairTask(ConfusablePair(Concept("Adder"), Concept(CYRILLIC)), pictures["Adder"], pictures[CYRILLIC])
    chat = FakeChat(script=['["red body"]', '["blue body"]'])
    assert not run_pipeline(tmp_path / "store", [task], chat=chat, **PLAIN).failures
    export_images(Store(tmp_path / "store", writable=False), tmp_path / "out", [task], "textual_contrastive")
    shown = {}
    for row in map(json.loads, (tmp_path / "out" / "train" / "metadata.jsonl").read_text().splitlines()):
        pixels = np.asarray(Image.open(tmp_path / "out" / "train" / row["file_name"])).mean((0, 1))
        shown[row["class_name"]] = "red" if pixels[0] > pixels[2] else "blue"
    assert shown == {"Adder": "red", CYRILLIC: "blue"}
    for inner, colour in (("Adder", "red"), (FULL_WIDTH, "blue")):
        support(tmp_path / "same" / "train" / inner, colour)
        support(tmp_path / "same" / "test" / inner, colour)
    (tmp_path / "same" / "pairs.json").write_text(json.dumps([{"target": "Adder", "confusable": FULL_WIDTH}]))
    with pytest.raises(ValueError, match="target and confusable must differ, got 'Adder' twice"):
        FewShotPairs(str(tmp_path / "same"), n_real=1).setup("fit")


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_damaged_pictures_are_read_or_refused_by_name(kind: str) -> None:
    draw, whole = random.Random(0), encoded(kind)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(min(len(data), draw.choice([40, 400, 10**6])))] = draw.randrange(256)
        try:
            assert read_picture(bytes(data), "some.picture", max_pixels=10**6).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith("some.picture ")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017


def test_a_small_file_whose_text_is_a_bomb_is_refused_by_name() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    whole = encoded("PNG")
    bomb = whole[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2**22)) + whole[33:]
    assert len(bomb) < 10_000
    with pytest.raises(ValueError, match=r"^bomb\.png cannot be decoded: Decompressed data too large"):
        read_picture(bomb, "bomb.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded("JPEG"), "lies about its type: it is named .png and holds JPEG; rename it."),
        (encoded("PNG")[:200], "is truncated"),
    ],
    ids=["lies", "cut off"],
)
def test_a_bad_support_picture_fails_its_pair_by_the_name_of_the_file(
    tmp_path: Path, data: bytes, message: str
) -> None:
    task = discs(tmp_path)
    Path(task.target_images[0]).write_bytes(data)
    other = ConfusablePair(Concept("Red Ring"), Concept("Blue Ring"))
    whole = PairTask(other, support(tmp_path / "rings", "red"), support(tmp_path / "rings", "blue"))
    result = run_pipeline(tmp_path / "store", [task, whole], kinds=("visual_contrastive",))
    failures = [str(unit.failure) for unit in result.failures]
    assert failures
    assert all(task.target_images[0] in failure and message in failure for failure in failures)
    assert {unit.concept for unit in result.units if not unit.failure} == {"Red Ring", "Blue Ring"}
