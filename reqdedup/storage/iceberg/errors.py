"""The two errors of storage on which a caller can act, beside ValueError for what was passed and
OSError for the storage."""


class ConflictError(RuntimeError):
    """Another writer was faster: nothing was changed, and the same call may succeed on the table as it is now."""


class IntegrityError(RuntimeError):
    """Rows would come out different from what went in, or files are not what the table says: a defect or damage.

    Nothing was committed. Repeating the call does not help.
    """
