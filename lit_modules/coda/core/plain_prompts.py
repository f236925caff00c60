"""Prompts of image-text models that have no chat template, as their cards and papers write them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlainPrompt:
    """Prompt of a family without a chat template.

    Args:
        question: Text of a question, with the place ``{prompt}``, and with ``{image}`` if the text, and not the
            processor, says where the image stands.
        gap: Text between a question and its answer.
        suffix: Whether the processor takes answers as its argument ``suffix`` and writes all special tokens itself.
        qformer: Whether a Q-Former reads the question beside the image; it must not see the answer.
    """

    question: str
    gap: str = ""
    suffix: bool = False
    qformer: bool = False


PLAIN_PROMPTS = {
    # visual questions in English, as the cards of PaliGemma and PaliGemma 2 ask them; arXiv 2407.07726
    "PaliGemmaProcessor": PlainPrompt("{image}answer en {prompt}", suffix=True),
    # the card of Salesforce/blip2-opt-2.7b
    "Blip2Processor": PlainPrompt("Question: {prompt} Answer:", gap=" "),
    # visual questions in the appendix of arXiv 2305.06500
    "InstructBlipProcessor": PlainPrompt("Question: {prompt} Short answer:", gap=" ", qformer=True),
}
"""Prompts by the class of the processor, which knows how text and image are laid out."""


def plain_prompt(processor: Any) -> PlainPrompt | None:
    """Return the prompt of a processor that has no chat template; ``None`` for one that has.

    Raises:
        ValueError: If a processor has neither.
    """
    if getattr(processor, "chat_template", None):  # not all processors have the attribute
        return None
    name = type(processor).__name__
    if name not in PLAIN_PROMPTS:
        known = ", ".join(PLAIN_PROMPTS)
        raise ValueError(
            f"The {name} has no chat template, without which only {known} are asked; put one beside the model as "
            "chat_template.jinja."
        )
    return PLAIN_PROMPTS[name]
