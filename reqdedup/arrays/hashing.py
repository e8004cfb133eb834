"""A stable 64-bit hash of ids, the same in any process, on any machine, in any language with wrapping integers.

    mix(z):  z += 0x9E3779B97F4A7C15;  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9
             z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    stable_hash(id, seed) = mix(mix(id) ^ mix(seed))

`mix` is one step of SplitMix64. It is a bijection, so two ids never share a hash at one seed, and an id is drawn with
rate p exactly when its hash is below p * 2^64: the users of a 1% sample are in the 10% sample of the same seed.

Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; constants
    of D. Stafford's Mix13.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

MIXED_TOGETHER = 8192
"""Numbers that are mixed together: they stay in the cache of a core for all of it."""


def mix(z: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 on each uint64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    if np.size(z) <= MIXED_TOGETHER:
        return _stirred(z)
    flat = z.ravel(order="K")
    for start in range(0, len(flat), MIXED_TOGETHER):
        _stirred(flat[start : start + MIXED_TOGETHER])
    return z


def _stirred(z: np.ndarray) -> np.ndarray:
    """The same array, changed in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def stable_hash(ids: np.ndarray, seed: int) -> np.ndarray:
    """Hash of each int64 id, [N] uint64; `seed` is any integer, taken modulo 2^64."""
    seed_hash = mix(np.array([seed % 2**64], np.uint64))
    return mix(mix(np.ascontiguousarray(ids, np.int64).view(np.uint64)) ^ seed_hash)


def below_rate(hashes: np.ndarray, rate: np.ndarray | float) -> np.ndarray:
    """True if a hash is drawn at `rate` (in [0, 1], one or one per hash), [N] bool."""
    rates = np.broadcast_to(np.asarray(rate, np.float64), hashes.shape)
    # 2^64 is no uint64, and a float64 holds the top 53 bits of a hash: compare those.
    return (hashes >> np.uint64(11)).astype(np.float64) < rates * 2.0**53


def hash_string(text: str) -> int:
    """The int64 id of a log's id that is a text: how, and how often two share one, stands in `reqdedup.logs.ids`."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)
