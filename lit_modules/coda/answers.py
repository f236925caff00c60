"""Reading which option an answer names."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import chain

_LEADING = re.compile(
    r"^(?:(?:the )?(?:answer|category|species|class|animal|picture|image|photo|photograph)(?: name)?"
    r"(?: (?:is|shows|depicts|contains|displays|features|in (?:the |this )?(?:picture|image|photo|photograph) is))?"
    r"|th(?:is|e) (?:picture|image|photo|photograph|animal|species|scene|place)(?: (?:is|shows|depicts|contains))?"
    r"|(?:this|it|that|there) (?:is|looks like|appears to be|seems to be|shows)|its|thats|i think|i believe|i see"
    r"|a (?:picture|image|photo|photograph) of|an (?:picture|image|photo|photograph) of|of|a|an|the) "
)
_LONGEST = 10_000
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


def normalise_answer(text: str) -> str:
    """Return an answer in the form in which names are compared.

    It is NFKC, without case, punctuation, leading articles and phrases such as "this is"; words stand one blank apart.

    Example:
        >>> normalise_answer("This is a **Puff_Adder**.")
        'puff adder'
        >>> normalise_answer("The image shows Franklin's Gull!")
        'franklins gull'
    """
    words = _plain_words(text)
    while True:
        shorter = _LEADING.sub("", words, count=1)
        if shorter == words or not shorter:
            return words
        words = shorter


def read_answer(text: str, options: Sequence[str], aliases: Sequence[Sequence[str]] | None = None) -> int | None:
    """Return the number of the option that an answer names, or ``None`` if it names none or several.

    The whole answer may be a name or alias. Otherwise exactly one option must occur on word boundaries; an option that
    is part of a longer one that occurs does not count, so "Puff Adder" is not "Adder". Both are tried with and then
    without brackets and their content.

    Args:
        text: The model's answer.
        options: Names, at least one.
        aliases: Other names of each option.

    Raises:
        ValueError: If there are no options, two bear one name, or aliases are of another number.

    Example:
        >>> options = ["Adder", "Puff Adder"]
        >>> [read_answer(text, options) for text in ("Adder", "It is a puff adder.", "Adder?? Or a python", "a snake")]
        [0, 1, 0, None]
    """
    if not options:
        raise ValueError("There must be at least one option.")
    if aliases is not None and len(aliases) != len(options):
        raise ValueError(f"aliases must be given for each of the {len(options)} options, got {len(aliases)}.")
    names: dict[str, int] = {}
    for number, option in enumerate(options):
        for name in (option, *(aliases[number] if aliases else ())):
            form = _plain_words(name)
            if not form:
                raise ValueError(f"An option must have letters or digits, got {name!r}.")
            if names.setdefault(form, number) != number:
                raise ValueError(f"Two options bear the name {form!r}; answers could not tell them apart.")
    text = text[:_LONGEST]
    whole = [text, _without_brackets(text)]
    for form in chain(map(_plain_words, whole), map(normalise_answer, whole)):
        if form in names:
            return names[form]
    for form in map(_plain_words, whole):
        found = _occurring(form, names)
        if len(found) == 1:
            return found.pop()
    return None


def _occurring(text: str, names: dict[str, int]) -> set[int]:
    there = [name for name in names if f" {name} " in f" {text} "]
    longest = [name for name in there if not any(name != other and f" {name} " in f" {other} " for other in there)]
    return {names[name] for name in longest}


def _plain_words(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub("['\u2019\u2018`\u00b4]", "", text)
    return " ".join(re.sub(r"[\W_]+", " ", text).split())


def _without_brackets(text: str) -> str:
    kept: list[str] = []
    opened: dict[str, list[int]] = {closing: [] for closing in _CLOSING.values()}
    for letter in text:
        if letter in _CLOSING:
            opened[_CLOSING[letter]].append(len(kept))
        elif opened.get(letter):
            start = opened[letter].pop()
            del kept[start:]
            for places in opened.values():  # of brackets that opened inside
                while places and places[-1] >= start:
                    places.pop()
            letter = " "
        kept.append(letter)
    return "".join(kept)
