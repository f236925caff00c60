"""Answers of an image-text model in batches against one at a time, and against images repeated for each question.

A LLaVA-NeXT built from its configuration, saved and loaded as a real one is, answers the questions that a run asks, by
`LocalChat` in batches, by transformers' batched `generate` with the image repeated for each question about it, and one
at a time, in turns: lists of features on an image of each class, some 100 tokens long, and verdicts of two tokens on
five attributes of each synthetic image. The answers are compared; where they differ, the scores of the first token that
differs are looked at, and a row is void unless the two likeliest are tied there.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from coda_models import picture
from timing import Table, in_turns, seconds

from lit_modules.coda import ChatRequest, Concept, LocalChat, feature_request, verification_requests

ATTRIBUTES = (
    "a short tail",
    "keeled scales along the whole of the back",
    "pale rings",
    "a broad, flat head that is set off from the neck",
    "red eyes",
)


def questions(number: int) -> dict[str, list[ChatRequest]]:
    """Return as many lists of features as given, and as many verdicts, as a run asks for."""
    names = ["Puff Adder", "Eyelash Viper", "Southeastern Five-lined Skink", "Tail-spot Wrasse", "Asp"]
    sizes = [(224, 224), (320, 160), (160, 320), (300, 260)]
    features = []
    for place in range(number):
        target, other = (Concept(f"{names[(place + far) % 5]} {place}", "animal") for far in (0, 2))
        shown = picture(place, "red", *sizes[place % 4])
        kind: Any = ("textual_contrastive", "visual_contrastive", "visual_plain")[place % 3]
        features.append(feature_request(kind, target, other, shown, max_new_tokens=128, temperature=0.0))
    verdicts = [
        replace(request, max_new_tokens=2)
        for place in range(-(-number // len(ATTRIBUTES)))
        for request in verification_requests(picture(place, width=224, height=224), ATTRIBUTES)
    ]
    return {"lists of features": features, "verdicts": verdicts[:number]}


def texts() -> list[str]:
    """Return the texts of some questions, to train a tokenizer on."""
    asked = [request for kind in questions(15).values() for request in kind]
    return [part["text"] for request in asked for part in request.messages[0]["content"] if "text" in part]


def tied(chat: LocalChat, request: ChatRequest, first: str, second: str) -> bool:
    """Say whether the two likeliest tokens are within 1e-4 where two answers part."""
    processor, network = chat._loaded
    one, other = (processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second))
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    inputs = dict(chat._inputs([request]))
    more = torch.tensor([one[:common]], dtype=torch.int64, device=network.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        top = network(**inputs).logits[0, -1].float().topk(2).values
    return bool(top[0] - top[1] < 1e-4)


def generation(table: Table, folder: str, kinds: dict[str, list[ChatRequest]], batch_size: int, rounds: int) -> None:
    """Time answers in batches, in batches that share nothing, and one at a time."""
    together, alone = LocalChat(folder, batch_size=batch_size), LocalChat(folder, batch_size=1)
    repeated = LocalChat(folder, batch_size=batch_size)
    repeated._shares = False
    totals, differ = [[0.0] * rounds, [0.0] * rounds], False
    for name, asked in kinds.items():
        answers: dict[str, list[str]] = {}

        def timed(
            name: str,
            chat: LocalChat,
            asked: Sequence[ChatRequest] = asked,
            answers: dict[str, list[str]] = answers,
        ) -> float:
            second, found = seconds(lambda: dict(chat.chat_many(asked)))
            answers[name] = [str(getattr(found[place], "text", found[place])) for place in range(len(asked))]
            return second

        ways = {"batched": together, "images repeated": repeated, "one at a time": alone}
        for chat in ways.values():
            dict(chat.chat_many(asked[:2]))  # loads the model
        batched, plain, single = in_turns(rounds, *(partial(timed, *way) for way in ways.items()))
        totals = [[t + o for t, o in zip(*pair, strict=True)] for pair in zip(totals, (batched, single), strict=True)]
        results, void = [], ""
        for way in ("images repeated", "one at a time"):
            pairs = zip(asked, answers["batched"], answers[way], strict=True)
            other = [(request, one, two) for request, one, two in pairs if one != two]
            ties = sum(tied(alone, *one) for one in other)
            void = "answers differ" if ties < len(other) else void
            ties_found = f", {ties} of the others tied" if other else ""
            results.append(f"{way}: {len(asked) - len(other)} of {len(asked)} answers equal{ties_found}")
        differ = differ or bool(void)
        what = f"{len(asked)} {name}, {batch_size} at a time"
        table.add(what, batched, {"images repeated": plain, "one at a time": single}, "; ".join(results), void=void)
    void = "answers differ" if differ else ""
    table.add("all answers", totals[0], {"one at a time": totals[1]}, "as above", void=void, most=1 / 3)
