"""Taking a key out of what a server says, in its usual spellings and codes."""

import base64
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

LONG_KEY = 8
"""Shorter keys, and shorter parts of keys, occur in texts by chance."""
_CODED_PART = 12  # letters of a coded key that give away about as much as 8 of the key
_BLOCK = 4
_HIDDEN = b"***"
# what stands for one character: in JSON, twice coded JSON, Python, addresses and HTML
_SPELLED = re.compile(
    rb"\\+u([0-9A-Fa-f]{4})|\\+x([0-9A-Fa-f]{2})|%(?:25)*([0-9A-Fa-f]{2})|&#[xX]0*([0-9A-Fa-f]{1,2});"
    rb"|&#0*([0-9]{1,3});|(&(?:amp|quot|apos|lt|gt);)|\\+(.)",
    re.DOTALL,
)
_NAMED = {b"&amp;": b"&", b"&quot;": b'"', b"&apos;": b"'", b"&lt;": b"<", b"&gt;": b">"}
_BLANK = b"nrtbf"  # after a backslash


def without_key(data: bytes, key: str) -> bytes:
    r"""Return a text with stars in place of a key, and of each part of it that has at least 8 characters.

    The key is found as it is, with characters escaped as in JSON, in addresses or in HTML, in base64 (alone, or in
    something longer such as ``user:key``) and in hexadecimal; and cut in parts of any length that nothing but signs and
    blanks stands between. Keys shorter than 8 characters are left, as they would occur by chance.

    Args:
        data: Text, such as the body of an answer; JSON stays JSON.
        key: The key, ASCII.

    Example:
        >>> without_key(rb'{"error": "no key sk-\u0073ecret-4711 here"}', "sk-secret-4711")
        b'{"error": "no key *** here"}'
        >>> without_key(b"Authorization: Bearer sk-secret-", "sk-secret-4711")
        b'Authorization: Bearer ***'
    """
    if len(key) < LONG_KEY:
        return data
    for form in (json.dumps(key)[1:-1], key):
        data = data.replace(form.encode(), _HIDDEN)
    plain, starts, places = _plain(data)
    spans = sorted(span for secret, least in _spellings(key) for span in _found(plain, secret, least))
    hidden: list[bytes] = []
    done = 0
    for start, stop in _joined(spans):
        first, _ = _raw(start, starts, places)
        _, last = _raw(stop - 1, starts, places)
        hidden += [data[done:first], _HIDDEN]
        done = last
    return b"".join([*hidden, data[done:]]) if hidden else data


@lru_cache(maxsize=8)
def _spellings(key: str) -> tuple[tuple[bytes, int], ...]:
    """Return the key and its codes, each with the length from which a part of it is hidden."""
    secret = key.encode()
    found = {secret: LONG_KEY}
    for before in range(3):  # where the key may begin in the three bytes of a group
        coded = base64.b64encode(bytes(before) + secret)
        own = coded[-(-8 * before // 6) : 8 * (before + len(secret)) // 6]
        for form in (own, own.translate(bytes.maketrans(b"+/", b"-_"))):
            found.setdefault(form, min(_CODED_PART, len(form)))
    for form in (secret.hex().encode(), secret.hex().upper().encode()):
        found.setdefault(form, 2 * LONG_KEY)
    return tuple(found.items())


def _found(text: bytes, secret: bytes, least: int) -> Iterator[tuple[int, int]]:
    """Yield where parts of a secret stand, and where all of it does with signs between."""
    for block in range(0, len(secret) - _BLOCK + 1, _BLOCK):
        place = text.find(secret[block : block + _BLOCK])
        while place >= 0:
            start, stop, left, right = place, place + _BLOCK, block, block + _BLOCK
            while start and left and text[start - 1] == secret[left - 1]:
                start, left = start - 1, left - 1
            while stop < len(text) and right < len(secret) and text[stop] == secret[right]:
                stop, right = stop + 1, right + 1
            if stop - start >= least:
                yield start, stop
            place = text.find(secret[block : block + _BLOCK], place + 1)
    letters = [bytes([letter]) for letter in secret if bytes([letter]).isalnum()]
    if len(letters) >= LONG_KEY:
        for match in re.finditer(rb"[^A-Za-z0-9]{0,16}".join(letters), text):
            for run in re.finditer(rb"[A-Za-z0-9]+", match[0]):
                yield match.start() + run.start(), match.start() + run.end()


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield sorted spans, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    yield from joined


def _plain(data: bytes) -> tuple[bytes, list[int], list[tuple[int, int]]]:
    """Return a text with one byte for each character, however spelled; and the pieces that it is made of.

    Returns:
        The text; where each piece begins in it; and where it stands in ``data``. Text as it is and spelled characters
        take turns.
    """
    pieces: list[bytes] = []
    places: list[tuple[int, int]] = []
    done = 0
    for match in _SPELLED.finditer(data):
        number = next((int(found, 16) for found in match.groups()[:4] if found), None)
        if number is None and match[5]:
            number = int(match[5])
        letter = _NAMED.get(match[6] or b"", match[7] or b"")
        if match[7] and match[7] in _BLANK:
            letter = b" "
        if number is not None:
            letter = bytes([number]) if number < 256 else b" "
        pieces += [data[done : match.start()], letter]
        places += [(done, match.start()), match.span()]
        done = match.end()
    pieces.append(data[done:])
    places.append((done, len(data)))
    starts, total = [], 0
    for piece in pieces:
        starts.append(total)
        total += len(piece)
    return b"".join(pieces), starts, places


def _raw(place: int, starts: list[int], places: list[tuple[int, int]]) -> tuple[int, int]:
    """Return where the character at a place of the plain text begins and ends in the data."""
    piece = bisect_right(starts, place) - 1
    if piece % 2:  # one character, spelled by several
        return places[piece]
    start = places[piece][0] + place - starts[piece]
    return start, start + 1
