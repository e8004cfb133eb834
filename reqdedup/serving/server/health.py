"""Whether the store answers, asked when somebody wants to know; the log is told with its place, a caller without."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from reqdedup.sequences.store import Store, StoreUnavailableError

logger = logging.getLogger(__name__)
SAY_AGAIN_S = 10.0
"""After which the log is told again that the store does not answer [seconds]."""


class StoreHealth:
    """Of one process. store: None if there is none, which is nothing that fails."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="look")
        self._look: asyncio.Future[str | None] | None = None
        self._said = -SAY_AGAIN_S

    async def failure(self) -> str | None:
        """Why the store does not answer now, None if it does; who asks meanwhile is told the same."""
        if self._store is None:
            return None
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().run_in_executor(self._looking, self._asked, self._store)
        return await asyncio.shield(self._look)

    def _asked(self, store: Store) -> str | None:
        try:
            store.end(0)
        except StoreUnavailableError as error:
            self.say(error)
            return error.reason
        return None

    def say(self, error: StoreUnavailableError) -> None:
        """To the log, now and then."""
        now = time.monotonic()
        if now - self._said >= SAY_AGAIN_S:
            self._said = now
            logger.error("%s", error)

    def close(self) -> None:
        self._looking.shutdown(wait=False, cancel_futures=True)
