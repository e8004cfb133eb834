"""The calls that say which models serve, and change that. A caller names bundles, and is told names: where they lie on
this machine is the log's to say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from reqdedup.serving.requests import RequestError
from reqdedup.serving.server.swap import Models
from reqdedup.serving.wire.bodies import check_keys
from reqdedup.values import shown

logger = logging.getLogger(__name__)


class Administration:
    """bundles: the folder that may be loaded from; None: nothing may be.  watched: places that may be loaded in any
    case, since the server does so itself once they change.  folders: those that no answer names, longest first."""

    def __init__(
        self, models: Models, *, bundles: Path | None, watched: tuple[str, ...], folders: tuple[str, ...]
    ) -> None:
        self._models, self._bundles, self._watched, self._folders = models, bundles, watched, folders
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load")

    def close(self) -> None:
        self._loading.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, Any]:
        """What `Models.describe` says, with names for places."""
        said = self._models.describe()
        for model in said["models"]:
            model["bundle"] = self._named(model["bundle"])
        for name in ("loading", "last_error"):
            said[name] = said[name] and self._named(said[name])
        return said

    async def change(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """{"action": "load" | "shadow", "bundle": path} or {"action": "rollback" | "promote" | "stop_shadow"}.

        A rollback or a promotion may say to which models, {"to": {task: version}}, and may then be repeated.
        """
        check_keys(values, frozenset({"action", "bundle", "to"}))
        to = values.get("to")
        if to is not None and not (isinstance(to, dict) and all(isinstance(one, str) for one in to.values())):
            raise RequestError("to", "versions by task", shown(to))
        models, action = self._models, values.get("action")
        pool: ThreadPoolExecutor | None
        work: Callable[[], Any]
        plain: dict[Any, Callable[[], Any]] = {
            "rollback": partial(models.rollback, to),
            "promote": partial(models.promote_shadow, to),
            "stop_shadow": models.stop_shadow,
        }
        of_bundle: dict[Any, Callable[[str], Any]] = {"load": models.load, "shadow": models.start_shadow}
        if not isinstance(action, str) or action not in plain.keys() | of_bundle.keys():
            raise RequestError("action", f"one of {', '.join([*of_bundle, *plain])}", shown(action))
        if action in plain and "bundle" in values:
            raise RequestError("bundle", f"none of action {action}", shown(values["bundle"]))
        if action not in ("rollback", "promote") and to is not None:
            raise RequestError("to", f"none of action {action}", shown(to))
        if action in of_bundle:
            pool, work = self._loading, partial(of_bundle[action], self._bundle(values.get("bundle")))
        else:
            pool, work = None, plain[action]  # at once, whatever is being loaded
        try:
            await asyncio.get_running_loop().run_in_executor(pool, work)
        except Exception as error:  # of a model too, which its self-test runs: nothing was changed
            if not isinstance(error, (ValueError, OSError)):
                logger.error("%s failed", action, exc_info=error)
            required, _, found = self._named(str(error)).partition(" required, found ")
            if not found:
                required, found = "a bundle that loads", f"{type(error).__name__}: {required}"
            raise RequestError("action" if action in plain else "bundle", required, found, status=409) from None
        return self.describe()

    def _bundle(self, given: Any) -> str:
        """A bundle below the folder that bundles may come from, so that a request cannot name any file."""
        if given in self._watched:
            return str(given)
        if self._bundles is None:
            raise RequestError(
                "bundle", "a server that was started with a folder of bundles", "one without", status=403
            )
        if not isinstance(given, str) or not given or "\0" in given:
            raise RequestError("bundle", "a folder below --load-from", "none" if given is None else shown(given))
        path = (self._bundles / given).resolve()
        if not path.is_relative_to(self._bundles.resolve()):
            raise RequestError("bundle", "a folder below --load-from", shown(given), status=403)
        return str(path)

    def _named(self, text: str) -> str:
        for folder in self._folders:
            text = text.replace(folder, "")
        return text
