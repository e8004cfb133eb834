"""A small log with one user whose id, key and history are nobody else's, so that their bytes can be searched for."""

from __future__ import annotations

import numpy as np

from tests.storage.small_log import make_log, make_request

MARKED = 0x5D0_7A6B_13C9_4E21  # no neighbour of any other id
KEY = f"nutzer-Ж{MARKED}-用户"
HISTORY = np.random.default_rng(77).integers(2**61, 2**62, (40, 3))


def log_with_the_user() -> list[dict]:
    """Two requests of the marked user, with a history that is nobody else's and does not compress, among others."""
    rng = np.random.default_rng(1)
    HISTORY[:, 1] &= 7
    marked = [make_request(rng, MARKED, 900_000 + i, fan_out=4, events=HISTORY, day=i) for i in range(2)]
    log = make_log(num_users=24, seed=6)
    return [*log[:10], *marked, *log[10:]]


LOG = log_with_the_user()
OTHERS = [request for request in LOG if request["user_id"] != MARKED]
NEEDLES = {
    "user id": MARKED.to_bytes(8, "little"),
    "user key": KEY.encode(),
    "history": HISTORY[:, 0].astype("<i8")[3:6].tobytes(),
}
