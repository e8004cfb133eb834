"""The two errors of storage on which a caller can act, beside ValueError for what was passed and
OSError for the storage."""

from __future__ import annotations

from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError, ValidationException

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
