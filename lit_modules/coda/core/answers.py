"""Parsers of models' answers: the option that one names, lists of features, bits, yes or no."""

import ast
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

_LEADING = re.compile(
    r"^(?:(?:the )?(?:answer|category|species|class|animal|picture|image|photo|photograph)(?: name)?"
    r"(?: (?:is|shows|depicts|contains|displays|features|in (?:the |this )?(?:picture|image|photo|photograph) is))?"
    r"|th(?:is|e) (?:picture|image|photo|photograph|animal|species|scene|place)(?: (?:is|shows|depicts|contains))?"
    r"|(?:this|it|that|there) (?:is|looks like|appears to be|seems to be|shows)|its|thats|i think|i believe|i see"
    r"|a (?:picture|image|photo|photograph) of|an (?:picture|image|photo|photograph) of|of|a|an|the) "
)
_LONGEST = 10_000
_SCRIPTS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_UNSPACED = re.compile(f"[{_SCRIPTS}]")  # Thai, Lao, Burmese, Khmer, kana, Han; Korean joins particles to a name
_BEGIN, _END = (f"(?{side}[^\\W{_SCRIPTS}])" for side in ("<!", "!"))
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}

_LONGEST_LIST = 40_000
_MOST_STARTS = 64
_MOST_STEPS = 100_000  # letters searched for closing brackets, so that a hostile answer takes no long time
_BULLET = re.compile(
    r"^[^\S\n]*(?:[-*\u2022\u2013\u2014\u00b7+]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])(?:[^\S\n]+|[^\S\n]*\n[^\S\n]*)(\S.*)$",
    re.MULTILINE,
)
_UNKNOWN = {"", "unknown", "none", "n a", "na", "null", "nil", "no", "not known", "not applicable", "i do not know"}


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

    The whole answer may be a name or alias. Otherwise exactly one option must occur, see :func:`names_in`: "Puff Adder"
    is not "Adder", and "Adder or Puff Adder" is both. Both are tried with and then without brackets and their content.

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
    for answer in whole:
        numbers = {names[name] for name in names_in(answer, names)}
        if len(numbers) == 1:
            return numbers.pop()
    return None


def names_in(text: str, names: Iterable[str]) -> set[str]:
    """Return the names that stand in a text, in any case and whatever the punctuation.

    A name stands between the ends of words; in scripts that write no blanks between words, such as Chinese, it stands
    anywhere. Where a longer name stands, the shorter ones in it do not count.

    Example:
        >>> names_in("a puff adder in adderland", ["Adder", "Puff Adder"])
        {'Puff Adder'}
    """
    forms = {_plain_words(name): name for name in names}
    rest, present = _plain_words(text), set()
    for form in sorted(filter(None, forms), key=len, reverse=True):
        begin = "" if _UNSPACED.match(form[0]) else _BEGIN
        end = "" if _UNSPACED.match(form[-1]) else _END
        rest, number = re.subn(f"{begin}{re.escape(form)}{end}", " \0 ", rest)
        if number:
            present.add(forms[form])
    return present


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
            for starts in opened.values():  # of brackets that opened inside
                while starts and starts[-1] >= start:
                    starts.pop()
            letter = " "
        kept.append(letter)
    return "".join(kept)


class MalformedAnswer(ValueError):
    """A model's answer cannot be read; another attempt may give one that can."""


@dataclass(frozen=True)
class ParsedFeatures:
    """Features in the order of an answer, dropped items with the reason, and whether the list was not closed."""

    features: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    cut_off: bool = False


def parse_features(text: str, names: Iterable[str] = (), max_features: int = 30, max_words: int = 12) -> ParsedFeatures:
    """Read a list of features from an answer: JSON, a Python list, bullets or numbers, or words in square brackets.

    Text around the list is ignored. Quotes are stripped. Dropped with their reason are duplicates, empty items, items
    that say "unknown", are too long, hold a class name, or come after the first ``max_features``.

    Args:
        text: The model's answer.
        names: Names of both classes, which would give the answer away.
        max_features: Most features, at least 1.
        max_words: Longest feature, in words, at least 1.

    Raises:
        MalformedAnswer: If the answer holds no list.
        ValueError: If a bound is less than 1.

    Example:
        >>> parsed = parse_features("Sure: ['short tail', 'Short tail', 'adder-like head']", ["Adder"])
        >>> parsed.features, parsed.dropped
        (('short tail',), (('Short tail', 'duplicate'), ('adder-like head', 'names a class')))
    """
    if min(max_features, max_words) < 1:
        raise ValueError(f"max_features and max_words must be at least 1, got {max_features} and {max_words}.")
    items, cut_off = _items(text[:_LONGEST_LIST])
    forbidden = tuple(names)
    kept: dict[str, str] = {}
    dropped: list[tuple[str, str]] = []
    for raw in items:
        item = _clean(raw)
        form = _plain_words(item)
        reasons = {
            "empty": not form,
            "unknown": form in _UNKNOWN,
            "duplicate": form in kept,
            f"more than {max_words} words": len(item.split()) > max_words,
            "names a class": bool(names_in(item, forbidden)),
            f"after the first {max_features}": len(kept) >= max_features,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is None:
            kept[form] = item
        else:
            dropped.append((item[:200], reason))
    return ParsedFeatures(tuple(kept.values()), tuple(dropped), cut_off)


def join_features(*lists: Sequence[str]) -> tuple[str, ...]:
    """Return the union of lists in their order, without items that differ in case or punctuation alone."""
    union: dict[str, str] = {}
    for items in lists:
        for item in items:
            union.setdefault(_plain_words(item), item)
    return tuple(union.values())


def parse_bits(text: str, count: int) -> tuple[bool, ...]:
    """Read one 0 or 1 for each of ``count`` attributes, in order, from an answer such as ``"[1, 0, 1]"``.

    Raises:
        MalformedAnswer: If the list is of another length or holds anything else.

    Example:
        >>> parse_bits("Here you are: [1, 0]", count=2)
        (True, False)
    """
    text = text[:_LONGEST_LIST]
    lists = [[_bit(item) for item in _flat(value)] for value in _literals(text)]
    bare = text.strip().strip(".`[]() \n")
    if re.fullmatch(r"[01](?:[\s,;]+[01])*", bare):
        lists.append([bit == "1" for bit in re.findall("[01]", bare)])
    lists = [bits for bits in lists if bits and None not in bits]
    for bits in lists:
        if len(bits) == count:
            return tuple(map(bool, bits))
    if lists:
        raise MalformedAnswer(f"The answer must have {count} bits, one for each attribute, got {len(lists[-1])}.")
    raise MalformedAnswer(f"The answer must be a list of {count} zeros and ones, got {text[:80]!r}.")


def parse_yes_no(text: str) -> bool:
    """Read yes or no from the beginning of an answer, else from its only such word.

    Raises:
        MalformedAnswer: If it says neither, or both.

    Example:
        >>> parse_yes_no("Yes, the tail is short."), parse_yes_no("The answer is **no**.")
        (True, False)
    """
    words = re.findall("[a-z0-9]+", unicodedata.normalize("NFKC", text[:_LONGEST_LIST]).casefold())
    meaning = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
    if words and words[0] in meaning:
        return meaning[words[0]]
    meanings = {meaning[word] for word in words if word in ("yes", "no", "true", "false")}
    if len(meanings) == 1:
        return meanings.pop()
    raise MalformedAnswer(f"The answer must be yes or no, got {text[:80]!r}.")


def _items(text: str) -> tuple[list[str], bool]:
    """Return the items of the first list in a text, and whether it was cut off."""
    for value in _literals(text):
        items = [item for item in _flat(value) if isinstance(item, str)]
        if items or value == []:
            return items, False
    bullets = _BULLET.findall(text)
    if len(bullets) >= 2:
        return bullets, False
    bare = [inner for inner in re.findall(r"\[([^\[\]]*)\]", text) if "," in inner]
    if bare:
        return max(bare, key=len).split(","), False
    if bullets:
        return bullets, False
    single = re.fullmatch(r"[^\[\]]*\[([^\[\]]*)\][^\[\]]*", text)
    if single:
        return [single[1]], False
    if "[" in text:
        whole = re.findall(r"\"((?:[^\"\\\n]|\\.)*)\"\s*(?=,)", text[text.index("[") :])
        if whole:
            return whole, True
    raise MalformedAnswer(f"The answer holds no list of features, got {text[:80]!r}.")


def _literals(text: str) -> Iterable[list[Any]]:
    """Yield the JSON and Python lists in a text, and the lists in JSON objects."""
    decoder = json.JSONDecoder()
    position, starts, steps = 0, 0, _MOST_STEPS
    while starts < _MOST_STARTS and (opening := re.compile(r"[\[{]").search(text, position)):
        starts += 1
        position = opening.start()
        value, end = None, position + 1
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            if text[position] == "[":
                closing = _closing(text, position, steps)
                steps -= (closing or len(text)) - position
                if closing is not None:
                    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                        value, end = ast.literal_eval(text[position:closing]), closing
        if isinstance(value, dict):
            yield from (inner for inner in value.values() if isinstance(inner, list))
        elif isinstance(value, list):
            yield value
        position = end


def _closing(text: str, start: int, steps: int) -> int | None:
    """Return the position after the bracket that closes the one at ``start``; quoted brackets do not count."""
    depth, quote, position = 0, "", start
    while position < min(len(text), start + steps):
        letter = text[position]
        if quote:
            if letter == "\\":
                position += 1
            elif letter == quote:
                quote = ""
        elif letter == '"' or (letter == "'" and text[position - 1] in "[, \n"):
            quote = letter
        elif letter == "[":
            depth += 1
        elif letter == "]":
            depth -= 1
            if depth == 0:
                return position + 1
        position += 1
    return None


def _flat(value: Any) -> list[Any]:
    """Return the items of a list and of lists in it; of a mapping in it the first text."""
    flat: list[Any] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list | tuple):
            stack.extend(reversed(item))
        elif isinstance(item, dict):
            flat += [inner for inner in item.values() if isinstance(inner, str)][:1]
        else:
            flat.append(item)
    return flat


def _bit(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"0": False, "1": True}.get(value.strip())
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def _clean(item: str) -> str:
    """Return an item on one line, without quotes, list marks and emphasis around it."""
    line = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in item)
    line = " ".join(re.sub(r"\*\*|__|`", "", line).split())
    return line.strip(" \t\"'\u201c\u201d\u2018\u2019.,;*").strip()
