"""Text without credentials: the one place that says what of a URL may be shown in a message, a report or a log.

    s3://KEY:SECRET@bucket/x                    s3://KEY:***@bucket/x
    ftp:/user:password@host (a Path of a URL)   ftp:/user:***@host
    https://TOKEN@host/x                        https://***@host/x
    s3://bucket/x?secret_key=a&region=b         s3://bucket/x?secret_key=***&region=b

A name before the colon stays, since it tells catalogs and accounts apart; so does a name alone, as in
abfss://container@account, except where it can be a token. Secrets that stand outside a URL are not found here:
`reqdedup.storage.iceberg.catalogs.hide_secrets` knows those of a catalog.
"""

from __future__ import annotations

import re

SECRET_NAMES = re.compile(
    r"password|passwd|pwd|secret|credential|token|key|authorization|signature|\bsig\b", re.IGNORECASE
)
"""Whether the name of a property, a key or a query parameter is that of a credential."""

_PASSWORD = re.compile(r"(?<=:/)(/?[^/@\s:]*):\S*@")
_TOKEN = re.compile(r"(?i)(?<=\bhttp:/)/[^/@\s:]+@|(?<=\bhttps:/)/[^/@\s:]+@")
_PARAMETER = re.compile(r"([?&;]([^=&?;\s]+)=)([^&;\s'\"]+)")


def mask(text: str) -> str:
    """`text` with the passwords, tokens and secret parameters of every URL in it replaced by ***."""
    text = _PASSWORD.sub(r"\1:***@", text)
    text = _TOKEN.sub("/***@", text)
    return _PARAMETER.sub(lambda found: found[1] + "***" if SECRET_NAMES.search(found[2]) else found[0], text)


def has_credentials(location: str) -> bool:
    """Whether a location carries what `mask` would hide."""
    return mask(location) != location


def refuse_credentials(what: str, location: str, *, instead: str) -> None:
    """Raise ValueError for a location of new tables' files that carries a credential.

    what: whose location.  instead: where the credential belongs.
    """
    if has_credentials(location):
        raise ValueError(
            f"{what}: a location without credentials required, found {mask(location)}; it is stored in every table, so "
            f"{instead} instead"
        )
