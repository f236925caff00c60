"""Chat conversations of one question about exactly one picture, as tensors that an image-text model takes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from lit_modules.coda.core.plain_prompts import plain_prompt
from lit_modules.utils.thoughts import close_thought, template_options

Message = dict[str, Any]
IGNORED = -100
"""Label of tokens that are not in the loss."""


def conversation(prompt: str, answer: str | None = None) -> list[Message]:
    """Return a user turn of one image and a text, and with an answer an assistant turn of it."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns


def check_conversation(messages: Sequence[Mapping[str, Any]], images: int) -> None:
    """Check that each user turn has exactly one image, no other turn has any, and that ``images`` is their number.

    Raises:
        ValueError: If not; a model would be trained on answers to pictures that it does not see.
    """
    users = sum(message["role"] == "user" for message in messages)
    for message in messages:
        role, content = message["role"], message["content"]
        number = 0 if isinstance(content, str) else sum(part.get("type") == "image" for part in content)
        if number != int(role == "user"):
            wanted = "exactly one image" if role == "user" else "no image"
            raise ValueError(f"A turn of the {role} must have {wanted}, got {number}: add or remove one.")
    if images != users:
        raise ValueError(f"A conversation of {users} user turns must come with as many images, got {images}.")


def end_token(processor: Any) -> str:
    """Return the token that ends an answer; a model trained without it would not stop to talk."""
    token = processor.tokenizer.eos_token
    if not token:
        raise ValueError("The tokenizer has no eos_token, so answers would have no end; set one in its configuration.")
    return str(token)


def render(processor: Any, prompt: str, answer: str | None = None) -> tuple[str, str]:
    """Write a conversation: the question up to where the model begins to answer, and the answer.

    The chat template writes it, or the prompt of :data:`~lit_modules.coda.core.plain_prompts.PLAIN_PROMPTS` where there
    is none. Training and evaluation both go through here, so that they cannot differ in template. Thinking is switched
    off where the template can; a thought that it opens all the same is closed empty, so that an answer never stands
    inside one. The answer goes to its end token; it is empty without one.

    Raises:
        ValueError: If there is no template and no prompt, the text does not have exactly one placeholder, or the answer
            is empty.
    """
    messages = conversation(prompt, answer)
    check_conversation(messages, 1)
    plain, options = plain_prompt(processor), template_options(processor)
    placeholder = str(processor.image_token)  # BLIP-2's is an object
    if plain is None:
        question = processor.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False, **options)
        question = close_thought(question)
    else:
        question = plain.question.format(image=placeholder, prompt=prompt)
    by_processor = int(plain is not None and "{image}" not in plain.question)
    places = question.count(placeholder) + by_processor
    if places != 1:
        raise ValueError(
            f"A question must have exactly one place {placeholder!r} for its image, got {places}; the chat template "
            "must write it for the image part, and names and questions must not hold it."
        )
    if answer is None:
        return question, ""
    if not answer.strip():
        raise ValueError("An answer must not be empty.")
    end = end_token(processor)
    if placeholder in answer or end in answer:
        raise ValueError(f"An answer must hold neither {placeholder!r} nor {end!r}, got {answer!r}.")
    if plain is not None:
        return question, plain.gap + answer.strip() + end
    whole = processor.apply_chat_template(messages, tokenize=False, **options)
    # a template may begin the answer with more than the text, such as an empty thought, where generation does not
    tail = whole[len(question) :] if whole.startswith(question) else answer
    if answer.strip() not in tail:
        tail = answer
    return question, tail.partition(end)[0].rstrip() + end


def encode(
    processor: Any,
    images: Sequence[Image],
    prompts: Sequence[str],
    *,
    answers: Sequence[str] | None = None,
    max_length: int | None = None,
    config: Any = None,
) -> dict[str, Tensor]:
    """Encode a batch of questions about one image each, never cut off.

    With answers the batch is padded on the right and has ``labels``: the answer and its end token, -100 elsewhere.
    Without them it is padded on the left and ends where the model begins to answer.

    Args:
        processor: Processor of the model.
        images: One image for each question.
        prompts: Questions.
        answers: Right answers.
        max_length: Most tokens that the model takes; ``None`` does not check.
        config: The model's configuration; with it, LLaVA-NeXT's number of image tokens is checked.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 ``(batch, tokens)``, the processor's tensors of the images such as
        ``pixel_values``, and ``labels``.

    Raises:
        ValueError: If there are not as many images as questions, or as answers; if a question is longer than
            ``max_length``; if the processor made more or fewer images or image tokens than there are.
    """
    if not len(images) == len(prompts) or not prompts:
        raise ValueError(f"There must be one image for each question, got {len(images)} for {len(prompts)} questions.")
    if answers is not None and len(answers) != len(prompts):
        raise ValueError(f"There must be one answer for each question, got {len(answers)} for {len(prompts)}.")
    kinds = [type(image).__name__ for image in images if not isinstance(image, Image)]
    if kinds:
        raise TypeError(f"Images must be PIL images, got {kinds[0]}; leave the datamodule's image_size at None.")
    tails: Sequence[str | None] = [None] * len(prompts) if answers is None else answers
    rows = [render(processor, *row) for row in zip(prompts, tails, strict=True)]
    tokenizer, plain = processor.tokenizer, plain_prompt(processor)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = end_token(processor)
    apart = plain is not None and plain.suffix
    # some templates write the first token themselves, and so does a processor that takes answers apart
    special = not apart and not (tokenizer.bos_token and rows[0][0].startswith(tokenizer.bos_token))
    settings: dict[str, Any] = {
        "images": [[image] for image in images],
        "padding": True,
        "padding_side": "left" if answers is None else "right",
        "truncation": False,
        "add_special_tokens": special,
        "return_tensors": "pt",
    }
    if apart and answers is not None:
        settings["suffix"] = [tail.removesuffix(end_token(processor)) for _, tail in rows]
    text = [question if apart else question + tail for question, tail in rows]
    batch: dict[str, Any] = dict(processor(text=text, **settings))
    batch.pop("labels", None)  # PaliGemma's own, which are there without answers too
    if plain is not None and plain.qformer:
        # padded on the right always, as its positions count from the left
        read = processor.qformer_tokenizer(
            [question for question, _ in rows], padding=True, padding_side="right", return_tensors="pt"
        )
        batch |= {f"qformer_{name}": read[name] for name in ("input_ids", "attention_mask")}
    longest = int(batch["attention_mask"].sum(1).max())
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"A question with its image takes {longest} tokens, and the model takes {max_length}; it is never cut off. "
            "Give fewer image_grid_pinpoints, shorter questions, or a larger max_length."
        )
    check_images(processor, batch, len(images), config=config)
    if answers is not None:
        ends = [("" if apart else question, tail) for question, tail in rows]
        batch["labels"] = _labels(tokenizer, batch, ends, special=special)
    return batch


def check_images(processor: Any, batch: Mapping[str, Tensor], images: int, *, config: Any = None) -> None:
    """Check that a batch has as many images and image tokens as there are; for LLaVA-NeXT by the model's ``config``.

    Raises:
        ValueError: If the numbers differ; the message says what to set.
    """
    for name in ("image_sizes", "image_grid_thw", "pixel_values"):
        # Qwen puts the patches of all images into one row of pixel_values, but counts images in image_grid_thw;
        # InternVL gives a row to each tile of an image, and counts them nowhere
        if name in batch:
            number = len(batch[name])
            if number < images or (number > images and name != "pixel_values"):
                raise ValueError(f"The processor made {number} images of {images}; see its {name}.")
            break
    # the token whose place an image takes; some processors write it for another one, as Ovis2's does
    owners = [owner for owner in (config, processor) if getattr(owner, "image_token_id", None) is not None]
    token = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    token = owners[0].image_token_id if owners else token
    counts = (batch["input_ids"] == token).sum(1).tolist()
    if not all(counts):
        raise ValueError(f"Row {counts.index(0)} of the batch has no image token, so its image would not be seen.")
    if getattr(config, "model_type", None) == "llava_next" and "image_sizes" in batch:
        wanted = [llava_next_tokens(config, *size) for size in batch["image_sizes"].tolist()]
        if counts != wanted:
            row = next(row for row, count in enumerate(counts) if count != wanted[row])
            raise ValueError(
                f"The processor makes {counts[row]} image tokens of image {row} and the model {wanted[row]} features; "
                "patch_size, vision_feature_select_strategy, num_additional_image_tokens and image_grid_pinpoints "
                "of the processor must be those of the model."
            )


def llava_next_tokens(config: Any, height: int, width: int) -> int:
    """Return the number of LLaVA-NeXT's features of an image: the whole, and its unpadded tiles with a break a row.

    Example:
        >>> from transformers import LlavaNextConfig
        >>> llava_next_tokens(LlavaNextConfig(), height=600, width=600)
        2928
    """
    from transformers.image_processing_utils import select_best_resolution

    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    best = select_best_resolution((height, width), config.image_grid_pinpoints)
    rows, columns = [int(length) // int(vision.image_size) * int(side) for length in best]
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    whole: int = side * side + int(config.vision_feature_select_strategy == "full")
    return whole + rows * columns + rows


def check_processor(processor: Any, config: Any) -> None:
    """Check that a model can be asked, and that a processor belongs to a LLaVA-NeXT model; others have own checks.

    Raises:
        ValueError: If there is no chat template and no plain prompt, the model is an encoder-decoder, or a field is
            missing or differs; its name, both values and the way out are in the message.
    """
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise ValueError(
            f"A model of the kind {config.model_type!r} is an encoder-decoder, and an answer must be what follows "
            "a question; give a model whose text part is a decoder alone, such as PaliGemma, BLIP-2 with OPT or "
            "Qwen2.5-VL."
        )
    plain_prompt(processor)
    if getattr(config, "model_type", None) != "llava_next":
        return
    vision = config.vision_config
    pinpoints = getattr(processor.image_processor, "image_grid_pinpoints", None)  # another model's has none
    needed = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "image_grid_pinpoints": _plain(config.image_grid_pinpoints),
        "num_additional_image_tokens": int(vision.model_type == "clip_vision_model"),  # CLIP has a class token
    }
    for name, wanted in needed.items():
        got = _plain(pinpoints) if name == "image_grid_pinpoints" else getattr(processor, name)
        if got != wanted:
            raise ValueError(
                f"{name} of the processor is {got!r} and the model needs {wanted!r}; image features and tokens would "
                f"not match. Set {name} in processor_config.json or preprocessor_config.json."
            )


def _plain(pinpoints: Any) -> list[list[int]] | None:
    return None if pinpoints is None else [[int(side) for side in sides] for sides in pinpoints]


def _labels(tokenizer: Any, batch: Mapping[str, Tensor], rows: Sequence[tuple[str, str]], *, special: bool) -> Tensor:
    """Return the tokens of answers and their ends, -100 elsewhere."""
    ids = batch["input_ids"]
    labels = torch.full_like(ids, IGNORED)
    lengths = batch["attention_mask"].sum(1).tolist()
    for row, (question, tail) in enumerate(rows):
        answer = answer_tokens(tokenizer, question, tail, special=special)
        start = lengths[row] - len(answer)
        # a row that does not end with its answer would be left out of the loss, or be trained on something else
        if not answer or ids[row, start : lengths[row]].tolist() != answer:
            raise ValueError(
                f"Row {row} does not end with the tokens of its answer {tail!r}; the processor changed or cut the text."
            )
        labels[row, start : lengths[row]] = ids[row, start : lengths[row]]
    return labels


def answer_tokens(tokenizer: Any, question: str, tail: str, *, special: bool = True) -> list[int]:
    """Return the tokens of a conversation that come after its question, to the end token.

    If a token spans the border, so that the question's tokens do not begin the conversation's, it belongs to them.
    ``special`` says whether the tokenizer adds its special tokens.
    """
    prefix = tokenizer(question, add_special_tokens=special)["input_ids"]
    whole = tokenizer(question + tail, add_special_tokens=special)["input_ids"]
    start = len(prefix)
    if whole[:start] != prefix:
        spans = tokenizer(question + tail, add_special_tokens=special, return_offsets_mapping=True)["offset_mapping"]
        start = next(index for index, (_, stop) in enumerate(spans) if stop > len(question))
    tokens: list[int] = whole[start:]
    if tokens[-1:] != [tokenizer.eos_token_id]:
        raise ValueError(f"The tokens of {tail!r} must end with the end token {tokenizer.eos_token!r}, got {tokens}.")
    return tokens
