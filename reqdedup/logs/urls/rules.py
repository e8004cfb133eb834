"""The rules file: which parameters of which pattern of which host change the page.

    {"format": 1, "fingerprint": "9b3f...", "allowlists": {"youtube.com": ["v"]}, "keep": ["^sku_"],
     "hosts": {"shop.example": [{"parameters": ["id", "utm_source"], "keep": ["id"]}]}}

`fingerprint` is of everything else in it, so that a table says by which rules its items were told apart.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reqdedup.logs.urls.parsing import canonical, host_of, split_url

FORMAT = 1

PLATFORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "youtube.com": ("v", "list"),
        "myshopify.com": ("variant",),
        "news.ycombinator.com": ("id", "p"),
    }
)
"""Hosts, with those below them, and the parameters that they are known to name pages by."""

Pattern = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What decides which parameters are kept; one that any layer keeps is kept.

    hosts: host -> pattern (sorted names) -> names that are kept; of a pattern that is not there all are.
    allowlists: host, which stands for those below it too, or "*" -> names that are kept.
    keep: regular expressions; a name in which one is found is kept.
    """

    hosts: Mapping[str, Mapping[Pattern, frozenset[str]]] = field(default_factory=dict)
    allowlists: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(PLATFORMS))
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_hosts("URL rules", self.allowlists)
        _check_expressions("URL rules", self.keep)

    @property
    def num_patterns(self) -> int:
        return sum(len(patterns) for patterns in self.hosts.values())

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of everything that the rules say."""
        return hashlib.blake2b(json.dumps(self._content()).encode(), digest_size=8).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the file; one that is there is replaced at once or not at all."""
        path = Path(path)
        text = json.dumps({"format": FORMAT, "fingerprint": self.fingerprint, **self._content()}, indent=1)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _content(self) -> dict[str, Any]:
        hosts = {
            host: [
                {"parameters": list(pattern), "keep": sorted(kept)}
                for pattern, kept in sorted(self.hosts[host].items())
            ]
            for host in sorted(self.hosts)
        }
        allowlists = {host: sorted(self.allowlists[host]) for host in sorted(self.allowlists)}
        return {"allowlists": allowlists, "keep": sorted(self.keep), "hosts": hosts}


def load_rules(source: Rules | Mapping[str, Any] | str | Path) -> Rules:
    """Rules from a file, its parsed form, or themselves. Raises ValueError for what is no rules file."""
    if isinstance(source, Rules):
        return source
    if isinstance(source, Mapping):
        return _parse("URL rules", source)
    where = f"URL rules {source}"
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8-sig"), object_pairs_hook=_object)
    except OSError as error:
        raise ValueError(
            f"{where}: a readable file required, found: {error.strerror}; `reqdedup urls learn` makes one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: JSON required, found: {error}") from None
    return _parse(where, content)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError if a key is there twice, of which the last would hide the others."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r:.200} twice in an object")
        content[key] = value
    return content


def _parse(where: str, content: Any) -> Rules:
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, Mapping) else content
        raise ValueError(f"{where}: format {FORMAT} required, found {found!r:.80}; learn them again")
    unknown = set(content) - {"format", "fingerprint", "allowlists", "keep", "hosts"}
    if unknown:
        raise ValueError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    try:
        rules = Rules(
            hosts=_hosts(where, content["hosts"]),
            allowlists=_check_hosts(where, {host: _texts(names) for host, names in content["allowlists"].items()}),
            keep=_check_expressions(where, _texts(content["keep"])),
        )
    except (KeyError, TypeError, AttributeError) as error:
        found = f"no key {error}" if isinstance(error, KeyError) else f"another form ({error})"
        raise ValueError(
            f'{where}: "hosts" (lists of "parameters" and "keep"), "allowlists" and "keep" required, found {found}'
        ) from None
    if content.get("fingerprint", rules.fingerprint) != rules.fingerprint:
        raise ValueError(
            f"{where}: rules with fingerprint {content['fingerprint']!r:.40} required, found {rules.fingerprint}: they "
            'were changed after they were written; if that was meant, remove the key "fingerprint"'
        )
    return rules


def _hosts(where: str, content: Mapping[str, Any]) -> dict[str, dict[Pattern, frozenset[str]]]:
    """Rules by host; of a pattern that is there twice, what any of them keeps."""
    hosts: dict[str, dict[Pattern, frozenset[str]]] = {}
    for host, entries in content.items():
        _check_host(where, host)
        patterns = hosts.setdefault(host_of(host), {})
        for entry in entries:
            pattern, kept = _pattern(entry["parameters"]), frozenset(map(canonical, _texts(entry["keep"])))
            if not kept.issubset(pattern):
                raise ValueError(
                    f"{where}: {host}: of its parameters {', '.join(pattern)} those to keep required, found "
                    f"{', '.join(sorted(kept.difference(pattern)))}"
                )
            patterns[pattern] = patterns.get(pattern, frozenset()) | kept
    return hosts


def _check_hosts(where: str, allowlists: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    for host in allowlists:
        if host != "*":
            _check_host(where, host)
            if host.startswith(("*", ".")):
                raise ValueError(
                    f"{where}: allowlists: a host, which stands for those below it, or * alone required, found {host!r}"
                )
    return allowlists


def _check_host(where: str, host: str) -> None:
    split = split_url(f"http://{host}/")
    if split is None or split.page != f"http://{split.host}/":
        raise ValueError(f"{where}: a host as shop.example required, without scheme and path, found {host!r:.200}")


def _check_expressions(where: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{where}: keep: a regular expression required, found {pattern!r:.200}: {error}") from None
    return patterns


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"a list of texts, not {values!r:.80}")
    return tuple(values)


def _pattern(values: Any) -> Pattern:
    return tuple(sorted({canonical(name) for name in _texts(values)}))
