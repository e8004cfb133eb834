"""Opening a catalog so that it answers in bounded time, says clearly why it does not, and never shows a credential.

pyiceberg waits for a silent REST catalog, or a silent PostgreSQL, for ever; its errors are those of the library below
it. A catalog opened here has time limits on every call, and raises

    ConnectionError   nothing answers, or the connection broke
    TimeoutError      it accepts the call and does not answer in time
    PermissionError   it refused the token, the credential or the password

Two limits stay: files on S3 have pyarrow's own (about 1.5 s for a refused and 11 s for a silent endpoint,
`s3.connect-timeout` and `s3.request-timeout` change them), and a commit that timed out may have landed: refresh the
table before a second try.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import requests
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.rest.auth import AuthManager
from pyiceberg.utils.config import Config

from reqdedup.masking import SECRET_NAMES, mask

if TYPE_CHECKING:
    from sqlalchemy import Engine

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0

FILE_IO = "reqdedup.storage.iceberg.private.StoreFileIO"

MAY_HAVE_LANDED = "a commit may have landed, so refresh the table before trying again"


def open_catalog(
    name: str = "reqdedup",
    properties: Mapping[str, str] | None = None,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> Catalog:
    """The catalog that these pyiceberg properties name, over those of pyiceberg's own configuration for `name`.

    REST and SQL catalogs get the time limits and errors of this module, others are opened as pyiceberg does.
    Raises ConnectionError, TimeoutError or PermissionError where it does not answer, ValueError for properties that
    name no catalog. No error text holds a credential, and none chains to an error that might.
    """
    configured: dict[str, Any] = {**(Config().get_catalog_config(name) or {}), **(properties or {})}
    configured.setdefault("py-io-impl", FILE_IO)
    limits = (connect_timeout_s, answer_timeout_s)
    try:
        kind = _kind(configured)
        if kind == "rest":
            return _open_rest(name, configured, limits)
        if kind == "sql":
            return _open_sql(name, configured, limits)
        return load_catalog(name, **configured)
    except (ConnectionError, TimeoutError, PermissionError) as error:
        raise type(error)(str(error)) from None
    except Exception as error:
        reason = hide_secrets(f"{type(error).__name__}: {error}", configured)
        raise ValueError(
            f"catalog {name!r} ({shown_uri(configured)}) cannot be opened: {reason}; check its properties "
            "(type, uri, warehouse, and the credential that belongs to them)"
        ) from None


def shown_uri(properties: Mapping[str, Any]) -> str:
    """The catalog's uri without a password or options, for messages."""
    uri = str(properties.get("uri") or "no uri given")
    shown = mask(uri)
    if shown == uri and "@" in uri:  # malformed, so that no part of it is surely not the password
        return uri.partition(":")[0] + ":***"
    return shown.partition("?")[0]


def hide_secrets(text: str, properties: Mapping[str, Any]) -> str:
    """`text` with the values of all secret properties, whole or in parts, and passwords in URLs replaced by ***."""
    secrets = [str(value) for key, value in properties.items() if SECRET_NAMES.search(key)]
    secrets += [part for secret in secrets for part in secret.split(":")]
    if uri := str(properties.get("uri") or ""):
        text = text.replace(uri, shown_uri(properties))
        # An `@` or `:` in a password that is not encoded: a driver may name any piece of it.
        before = uri.partition("://")[2].rpartition("@")[0]
        secrets += re.split(r"[:@]", before.partition(":")[2])
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return mask(text)


def _kind(properties: Mapping[str, Any]) -> str:
    """rest, sql, or what else the properties say. pyiceberg's own guess puts the uri, password and
    all, into its error."""
    if kind := properties.get("type"):
        return str(kind).lower()
    if properties.get("py-catalog-impl"):
        return "py-catalog-impl"
    uri = str(properties.get("uri", ""))
    kinds = {"http": "rest", "sqlite": "sql", "postgresql": "sql", "thrift": "hive"}
    for start, kind in kinds.items():
        if uri.startswith(start):
            return kind
    raise ValueError(f"type, or a uri that starts with {', '.join(kinds)}, required, found neither")


class BoundedRestCatalog(RestCatalog):
    """pyiceberg's REST catalog with a time limit on every request."""

    def __init__(self, name: str, *, limits: tuple[float, float], **properties: str) -> None:
        self._limits = limits
        super().__init__(name, **properties)

    def _create_legacy_oauth2_auth_manager(self, session: requests.Session) -> AuthManager:
        # pyiceberg makes its session and asks for a token in one go, so this, called in between, is the one place to
        # set limits before the first request. Goes once RestCatalog takes timeouts as properties.
        self._bound(session)
        return super()._create_legacy_oauth2_auth_manager(session)

    def _create_session(self) -> requests.Session:
        session = super()._create_session()
        self._bound(session)
        return session

    def _bound(self, session: requests.Session) -> None:
        if not getattr(session, "_reqdedup_bounded", False):
            session.request = self._bounded(session.request)  # type: ignore[method-assign]
            session._reqdedup_bounded = True  # type: ignore[attr-defined]

    def _bounded(self, send: Callable[..., requests.Response]) -> Callable[..., requests.Response]:
        def request(method: str, url: str, **options: Any) -> requests.Response:
            options["timeout"] = options.get("timeout") or self._limits
            where = f"catalog {self.name!r} ({shown_uri(self.properties)})"
            landed = "" if method.upper() in ("GET", "HEAD") else f"; {MAY_HAVE_LANDED}"
            try:
                response = send(method, url, **options)
            except requests.Timeout:
                raise TimeoutError(
                    f"{where}: an answer within {self._limits[1]:g} s required, found none to {method}; check that it "
                    "runs" + landed
                ) from None
            except requests.ConnectionError as error:
                cause = _cause(error)
                raise ConnectionError(
                    f"{where}: no connection ({cause}); check uri, and that the catalog runs"
                    + ("" if "refused" in cause else landed)
                ) from None
            self._check_sign_in(where, url, response)
            return response

        return request

    def _check_sign_in(self, where: str, url: str, response: requests.Response) -> None:
        """Refusals that a new token cannot heal; the others go back to pyiceberg, which renews the token once."""
        if response.status_code not in (400, 401, 403, 419):
            return
        if "grant_type" in str(response.request.body) and response.request.method == "POST":
            raise PermissionError(f"{where}: refused the credential at {url}; check `credential` and `scope`")
        if response.status_code in (401, 419) and "credential" not in self.properties:
            found = "the token was refused, it is wrong or has expired" if "token" in self.properties else "none given"
            raise PermissionError(
                f"{where}: sign-in required, {found}; set a new `token`, or `credential`, which is renewed by itself"
            )


def _open_rest(name: str, properties: dict[str, Any], limits: tuple[float, float]) -> Catalog:
    properties = {"type": "rest", **properties}
    if not properties.get("uri"):
        raise ValueError("uri required, found none")
    return BoundedRestCatalog(name, limits=limits, **properties)


def _open_sql(name: str, properties: dict[str, Any], limits: tuple[float, float]) -> Catalog:
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy import event
    from sqlalchemy.engine import ExceptionContext, make_url
    from sqlalchemy.exc import OperationalError

    url = make_url(str(properties.get("uri") or ""))
    properties = {"type": "sql", **properties}
    if url.get_backend_name() == "postgresql":
        answer_ms = str(round(limits[1] * 1000))
        options = {
            "connect_timeout": str(max(2, round(limits[0]))),  # seconds; libpq takes 1 for 2
            "tcp_user_timeout": answer_ms,
            "options": f"-c statement_timeout={answer_ms}",
        }
        url = url.update_query_dict({key: value for key, value in options.items() if key not in url.query})
        properties["uri"] = url.render_as_string(hide_password=False)
        properties.setdefault("pool_pre_ping", "true")  # a server that was restarted is met with a new connection
    where = f"catalog {name!r} ({shown_uri(properties)})"
    try:
        catalog = SqlCatalog(name, **properties)
    except OperationalError as error:
        if "already exists" not in str(error.orig):
            raise _sql_error(where, error.orig or error) from None
        catalog = SqlCatalog(name, **properties)  # another process made the catalog's tables at this very moment
    except ModuleNotFoundError as error:
        raise ValueError(
            f"driver {error.name} is not installed; for PostgreSQL `pip install 'reqdedup[postgres]'` and name the "
            "driver in the uri: postgresql+psycopg2://"
        ) from None

    def translate(context: ExceptionContext) -> None:
        lost = isinstance(context.sqlalchemy_exception, OperationalError) and not context.is_pre_ping
        if lost and url.get_backend_name() == "postgresql":
            raise _sql_error(where, context.original_exception) from None

    # Only from here on: pyiceberg finds out by such an error whether its tables are there.
    engine: Engine = catalog.engine
    event.listen(engine, "handle_error", translate)
    return catalog


def _sql_error(where: str, error: BaseException) -> OSError:
    text = " ".join(str(error).split())
    if "authentication failed" in text:
        return PermissionError(f"{where}: refused the password; check user and password of its uri")
    if "timeout" in text.lower():
        return TimeoutError(
            f"{where}: an answer in time required, found none ({text}); check that the database runs and what holds "
            f"its locks; {MAY_HAVE_LANDED}"
        )
    return ConnectionError(f"{where}: no connection ({text}); check uri, and that the database runs")


def _cause(error: BaseException) -> str:
    """The last word of a chain of connection errors, without the addresses of Python objects."""
    text = str(error)
    refused = re.search(r"\[Errno -?\d+\] [^'\")]*|Remote end closed[^'\")]*|[Nn]ame or service not known", text)
    return refused.group(0) if refused else type(error).__name__
