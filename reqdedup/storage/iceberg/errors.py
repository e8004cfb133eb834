"""The two errors of storage on which a caller can act, beside ValueError for what was passed and
OSError for the storage."""

from __future__ import annotations

import requests
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    ServerError,
    ServiceUnavailableError,
    TableAlreadyExistsError,
    ValidationException,
)

_NO_ANSWER = (
    *(ConnectionError, TimeoutError, requests.RequestException),
    *(CommitStateUnknownException, ServerError, ServiceUnavailableError),
)
_NO_ANSWER_NAMES = {
    ("botocore.exceptions", "HTTPClientError"),
    ("thrift.transport.TTransport", "TTransportException"),
}
"""Module and class of what AWS Glue, DynamoDB and Hive raise: their clients may not be installed."""

# pyiceberg 0.12 asks for the branch's head alone: a commit to another branch, between loading the table and ours, shows
# as a stale sequence number. A table that was made anew under the name shows as another UUID.
_CONFLICT_WORDS = ("older than last sequence number", "Table UUID does not match")


class ConflictError(RuntimeError):
    """Another writer was faster: nothing was changed, and the same call may succeed on the table as it is now."""


class IntegrityError(RuntimeError):
    """Rows would come out different from what went in, or files are not what the table says: a defect or damage.

    Nothing was committed. Repeating the call does not help.
    """


def is_conflict(error: BaseException) -> bool:
    """Whether pyiceberg's error says that another writer was faster."""
    if isinstance(error, (CommitFailedException, ValidationException, TableAlreadyExistsError)):
        return True
    return isinstance(error, ValueError) and any(words in str(error) for words in _CONFLICT_WORDS)


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether a catalog's error leaves open if it has taken the commit: no answer came, or one of a broken server.

    Those of a catalog that pyiceberg opened itself count too: they are its client's, not those of `open_catalog`.
    """
    if isinstance(error, _NO_ANSWER) or getattr(error, "connection_invalidated", False):  # the latter: SQLAlchemy's
        return True
    return any((kind.__module__, kind.__name__) in _NO_ANSWER_NAMES for kind in type(error).__mro__)
