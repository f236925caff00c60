"""Parser of the option that an answer names."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import chain

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
        >>> read_answer("Adder or Puff Adder", options) is None
        True
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

    Args:
        text: The text.
        names: Names, of letters or digits.

    Example:
        >>> names_in("\u8fd9\u662f\u4e91\u8c79", ["Adder", "\u4e91\u8c79"])
        {'\u4e91\u8c79'}
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
