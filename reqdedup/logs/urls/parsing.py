"""A URL in parts: page, parameters, fragment, as the URL standard (WHATWG) writes them.

    HTTP://Shop.Example:80/a/../b?utm=x&b=%7e&a=1#top
    page http://shop.example/b   host shop.example   names (utm, b, a)   values (x, ~, 1)   fragment ""

The library `ada_url` parses: scheme, host (IDNA, upper case, IP addresses), default ports, dot segments, what must be
percent-encoded. Names and values of parameters are compared as forms are: decoded to bytes, + as a space, and encoded
again, so that bytes which are no UTF-8 stay apart. A fragment is dropped, unless it is the route of a page that runs in
the browser (it starts with ! or /). Paths stay as the standard has them: %7E and ~ are two there.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote_plus, unquote_plus, unquote_to_bytes

from ada_url import normalize_url

_ESCAPED = [f"{byte:02X}" for byte in range(256) if quote_plus(bytes([byte])) == f"%{byte:02X}"]
_ESCAPES = "|".join(
    f"{first}[{''.join(escape[1] for escape in _ESCAPED if escape[0] == first)}]"
    for first in sorted({escape[0] for escape in _ESCAPED})
)
_is_canonical = re.compile(rf"[A-Za-z0-9_.~+-]*(?:%(?:{_ESCAPES})[A-Za-z0-9_.~+-]*)*").fullmatch
_PIECES = re.compile(rf"%(?!{_ESCAPES})(?:[0-9A-Fa-f]{{2}})?|[^A-Za-z0-9_.~+%-]{{1,16}}")
"""What must be written anew: percent signs, and characters that must have them, up to 16 as they are remembered."""

_ROUTES = ("!", "/")


class SplitUrl(NamedTuple):
    """page: scheme to path.  host: with its port, if it is not the default.  names, values: of the parameters, as the
    URL has them, encoded anyhow.  fragment: "" or "#" and the route."""

    page: str
    host: str
    names: tuple[str, ...]
    values: tuple[str, ...]
    fragment: str


def split_url(text: str) -> SplitUrl | None:
    """The parts of a URL of http or https; None for what is none."""
    try:
        href = normalize_url(text)
    except (ValueError, TypeError, AttributeError):  # UnicodeEncodeError of half a surrogate pair is a ValueError
        return None
    scheme, mark, rest = href.partition("://")
    if not mark or scheme not in ("http", "https"):
        return None
    head, _, fragment = href.partition("#")
    page, _, query = head.partition("?")
    host = rest.partition("/")[0].rpartition("@")[2]
    pairs = [piece.partition("=") for piece in query.split("&") if piece]
    return SplitUrl(
        page,
        host,
        tuple([pair[0] for pair in pairs]),
        tuple([pair[2] for pair in pairs]),
        "#" + fragment if fragment.startswith(_ROUTES) else "",
    )


def canonical(text: str) -> str:
    """A name or value as all its spellings are written here: `%7e` and `~`, `%20` and `+` are one."""
    if _is_canonical(text):
        return text
    text = text.replace("%20", "+")  # most often that is all
    return text if _is_canonical(text) else _PIECES.sub(_encoded, text)


def _encoded(piece: re.Match[str]) -> str:
    return _quoted(piece[0])


@lru_cache(maxsize=4096)
def _quoted(piece: str) -> str:
    return quote_plus(unquote_to_bytes(piece))


def decoded(text: str) -> str:
    """A canonical name or value as one writes it: `filter%5Bsize%5D` is `filter[size]`."""
    return unquote_plus(text)


def host_of(text: str) -> str:
    """A host as URLs have it, lower case and punycode; what is none as it is."""
    split = split_url(f"http://{text}/")
    return text if split is None else split.host


def join_url(split: SplitUrl, parameters: list[str]) -> str:
    """The URL with these parameters, canonical `name=value`, in this order."""
    query = "&".join(parameters)
    return f"{split.page}?{query}{split.fragment}" if query else split.page + split.fragment


def pattern_of(split: SplitUrl) -> tuple[str, ...]:
    """The sorted set of the names of its parameters."""
    return tuple(sorted({canonical(name) for name in split.names}))


def write_url(split: SplitUrl, *, without: Collection[str] = ()) -> str:
    """The URL with its parameters by name, several of one name in their order. without: names that are left out."""
    pairs = [(canonical(name), value) for name, value in zip(split.names, split.values)]
    kept = sorted((pair for pair in pairs if pair[0] not in without), key=lambda pair: pair[0])
    return join_url(split, [f"{name}={canonical(value)}" for name, value in kept])
