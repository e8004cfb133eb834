"""Items of a log that are named by URLs: their normal form is the key that gets the id, the URL stays beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from reqdedup.logs.mapping import ITEM_URL
from reqdedup.logs.urls.normalise import Normaliser
from reqdedup.logs.urls.rules import Rules, load_rules
from reqdedup.logs.values import LIST_MARK

_SETTLE_AT = 1 << 22
"""Number of hashes that are gathered, at least, before equal ones among them are dropped."""


@dataclass(frozen=True)
class UrlMerges:
    """What normalising did to a log.

    urls: number of distinct URLs of its items.  items: number of distinct normal forms.
    not_urls: number of distinct texts that are no URL of http or https, kept as they are.
    rules: fingerprint of the rules.
    rows_merged: number of rows with another URL of a page that their request has already; its first row stays.
    labels_differ: number of items of requests that had rows with different labels, of which the largest stay.
    """

    urls: int
    items: int
    not_urls: int
    rules: str
    rows_merged: int = 0
    labels_differ: int = 0

    @property
    def merged(self) -> int:
        """URLs that share an item with an earlier one."""
        return self.urls - self.items


class UrlItems:
    """Normalises the items of blocks and counts what that merges; up to 48 bytes per distinct URL.

    rules: path of the rules file; "" keeps all parameters.
    """

    def __init__(self, rules: str) -> None:
        self.rules = load_rules(rules) if rules else Rules()
        self._normaliser = Normaliser(self.rules)
        self.forget()

    def forget(self) -> None:
        """Count anew."""
        self._urls, self._items, self._not_urls = _Distinct(), _Distinct(), _Distinct()

    @property
    def merges(self) -> UrlMerges:
        return UrlMerges(self._urls.count, self._items.count, self._not_urls.count, self.rules.fingerprint)

    def seen(self) -> tuple[np.ndarray, ...]:
        """Hashes of what was counted so far, for `absorb`."""
        return tuple(one.hashes for one in (self._urls, self._items, self._not_urls))

    def absorb(self, seen: tuple[np.ndarray, ...]) -> None:
        """Count what another has seen."""
        for own, theirs in zip((self._urls, self._items, self._not_urls), seen):
            own.add_hashes(theirs)

    def normalised(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with normal forms as item_key and in its packed histories; the URLs as item_url."""
        urls = frame["item_key"]
        frame = frame.with_columns(urls.alias(ITEM_URL), self._counted(urls))
        if "history" not in frame.columns:
            return frame
        packed = frame["history"].unique()
        inside = packed.filter(packed != "").str.split(LIST_MARK).explode().unique()
        form_of = dict(zip(inside.to_list(), self._counted(inside).to_list()))
        texts = packed.to_list()
        forms = [text and LIST_MARK.join([form_of[url] for url in text.split(LIST_MARK)]) for text in texts]
        return frame.with_columns(_replaced(frame["history"], packed, pl.Series(forms, dtype=pl.String)))

    def forms(self, texts: pl.Series) -> pl.Series:
        """The normal forms of a column, or of the elements of its lists; counted are those of items alone."""
        if texts.dtype == pl.List:
            distinct = texts.explode().drop_nulls().unique()
            return texts.list.eval(pl.element().replace(distinct, self._forms(distinct)[1]))
        distinct = texts.drop_nulls().unique()
        return _replaced(texts, distinct, self._forms(distinct)[1])

    def _counted(self, urls: pl.Series) -> pl.Series:
        distinct = urls.drop_nulls().unique()
        is_none, forms = self._forms(distinct)
        self._urls.add(distinct)
        self._items.add(forms)
        self._not_urls.add(distinct.filter(is_none))
        return _replaced(urls, distinct, forms)

    def _forms(self, distinct: pl.Series) -> tuple[pl.Series, pl.Series]:
        """Which texts are no URLs, and the normal forms of all, in their order."""
        forms = pl.Series([self._normaliser.form(text) for text in distinct.to_list()], dtype=pl.String)
        return forms.is_null(), distinct.zip_with(forms.is_null(), forms)


class _Distinct:
    """How many different texts there were, by 64 bits of their hash."""

    def __init__(self) -> None:
        self._settled = np.zeros(0, np.uint64)
        self._parts: list[np.ndarray] = []
        self._added = 0

    def add(self, texts: pl.Series) -> None:
        self.add_hashes(texts.hash().to_numpy())

    def add_hashes(self, hashes: np.ndarray) -> None:
        self._parts.append(hashes)
        self._added += len(hashes)
        if self._added > max(_SETTLE_AT, len(self._settled)):  # as many as there are, so that sorting stays cheap
            self._settle()

    @property
    def count(self) -> int:
        return len(self.hashes)

    @property
    def hashes(self) -> np.ndarray:
        self._settle()
        return self._settled

    def _settle(self) -> None:
        self._settled = np.unique(np.concatenate([self._settled, *self._parts]))
        self._parts, self._added = [], 0


def _replaced(texts: pl.Series, old: pl.Series, new: pl.Series) -> pl.Series:
    return texts.replace_strict(old, new, default=None, return_dtype=pl.String)
