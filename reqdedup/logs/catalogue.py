"""The items of a synthetic log: popularity, latent factors, quality and category, all computed from the item id.

Nothing here grows with the catalogue: an item's factors are the sum of two rows of fixed tables that a hash of its id
chooses (2^32 combinations), so millions of items cost the 8 MiB of the tables. Catalogues up to 2^17 items are laid out
as one table with the same values, which halves the gathers.
"""

from __future__ import annotations

import math

import numpy as np

from reqdedup.logs.ids import mix64

_TABLE_ROWS = 1 << 16
_LAID_OUT_ITEMS = 1 << 17
_CATALOGUE_STREAM = 0


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """An independent random stream for (seed, key): the same numbers in every process, in any order of use."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class Catalogue:
    """Items 0 .. num_items - 1 of one seed.

    Factors are standard normal, [width]; the affinity of a user is `user . item / sqrt(width)`, standard normal over
    random pairs. Popularity is a continuous Zipf law over ranks, and ranks are scattered over the ids, so that an id
    tells nothing about its popularity.
    """

    def __init__(self, *, seed: int, num_items: int, width: int, num_categories: int, popularity_exponent: float):
        self.num_items, self.width = num_items, width
        self._exponent = popularity_exponent
        rng = random_stream(seed, _CATALOGUE_STREAM)
        self._first = rng.standard_normal((_TABLE_ROWS, width), np.float32) * np.float32(math.sqrt(0.5))
        self._second = rng.standard_normal((_TABLE_ROWS, width), np.float32) * np.float32(math.sqrt(0.5))
        self._quality = rng.standard_normal(_TABLE_ROWS, np.float32)
        anchors = rng.standard_normal((width, num_categories), np.float32)
        nearest = np.einsum("td,dc->tc", self._first, anchors)
        self._category = nearest.argmax(axis=1).astype(np.int32)
        self._key = rng.integers(0, 2**63, dtype=np.uint64)
        multiplier = int(rng.integers(1, num_items + 1))
        while math.gcd(multiplier, num_items) != 1:
            multiplier += 1
        self._multiplier, self._shift = multiplier % num_items, int(rng.integers(0, num_items))
        self._laid_out: np.ndarray | None = None
        if num_items <= _LAID_OUT_ITEMS:
            self._laid_out = self._compute_factors(np.arange(num_items))

    def factors(self, item_id: np.ndarray) -> np.ndarray:
        """[N] ids -> [N, width] float32."""
        if self._laid_out is not None:
            return self._laid_out[item_id]
        return self._compute_factors(item_id)

    def quality(self, item_id: np.ndarray) -> np.ndarray:
        """[N] ids -> [N] float32, standard normal: how good an item is for everybody."""
        return self._quality[self._table_row(item_id, 2)]

    def category(self, item_id: np.ndarray) -> np.ndarray:
        """[N] ids -> [N] int32: the direction that the first half of the item's factors points to."""
        return self._category[self._table_row(item_id, 0)]

    def draw_popular(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """[count] int64 ids by popularity: P(rank k) is the integral of x^-exponent from k to k + 1, k = 1, 2, ..."""
        uniform = rng.random(count)
        power = 1.0 - self._exponent
        if abs(power) < 1e-9:
            position = np.exp(uniform * math.log(self.num_items + 1))
        else:
            position = (1.0 + uniform * ((self.num_items + 1) ** power - 1.0)) ** (1.0 / power)
        return self.id_of_rank(np.minimum(position.astype(np.int64) - 1, self.num_items - 1))

    def id_of_rank(self, rank: np.ndarray) -> np.ndarray:
        """Ids of popularity ranks, rank 0 the most popular; a bijection of 0 .. num_items - 1."""
        return (np.asarray(rank, np.int64) * self._multiplier + self._shift) % self.num_items

    def draw_by_taste(
        self, rng: np.random.Generator, user_factors_TD: np.ndarray, taste_share: float, num_proposals: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """One item per row of user_factors_TD [T, width]: ids [T] int64 and their affinities [T] float32.

        With probability `taste_share` the best for the user of `num_proposals` draws by popularity, else one draw.
        """
        count = len(user_factors_TD)
        chosen = self.draw_popular(rng, count)
        best = self.affinity(user_factors_TD, chosen)
        by_taste = rng.random(count, np.float32) < taste_share
        for _ in range(num_proposals - 1):
            proposal = self.draw_popular(rng, count)
            affinity = self.affinity(user_factors_TD, proposal)
            better = by_taste & (affinity > best)
            chosen = np.where(better, proposal, chosen)
            best = np.where(better, affinity, best)
        return chosen, best

    def affinity(self, user_factors_TD: np.ndarray, item_id: np.ndarray) -> np.ndarray:
        """[T, width] users, [T] ids -> [T] float32. No BLAS: its sums may depend on the number of threads."""
        return np.einsum("td,td->t", user_factors_TD, self.factors(item_id)) * np.float32(1.0 / math.sqrt(self.width))

    def _table_row(self, item_id: np.ndarray, which: int) -> np.ndarray:
        hashed = mix64(np.asarray(item_id).astype(np.uint64) + self._key)
        return ((hashed >> np.uint64(16 * which)) & np.uint64(_TABLE_ROWS - 1)).astype(np.int64)

    def _compute_factors(self, item_id: np.ndarray) -> np.ndarray:
        return self._first[self._table_row(item_id, 0)] + self._second[self._table_row(item_id, 1)]
