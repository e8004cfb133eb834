"""What a user's log means: which column is what, in which unit, in which range; `mapping_toml` reads it from TOML."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from reqdedup.schema import SCALAR_TYPES

TIME_UNITS_US = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}
"""Microseconds of one unit; nanoseconds are divided instead."""

ORDER = "order"
"""Unit of numbers that say what came before what, and no time."""

MAX_ORDER = 2**32 - 1

NULL_VALUES = ("", "NULL", "null", "\\N", "NaN", "nan", "None")
DEFAULT_SESSION_GAP_S = 1_800.0
FEATURE_TYPES = tuple(name for name in SCALAR_TYPES if name != "timestamp")
MAX_LABELS = 31
ARRIVAL, ARRIVED_US = "arrival time", "arrival time [us]"
"""Internal names of the column that says when a row arrived, as it is read and in microseconds since 1970."""

ITEM_URL = "item_url"
"""The column with the URL as the log has it, if items are named by URLs."""

_RESERVED = {
    *("user", "item", "request", "time", "candidates", "history", "history_times", "file", "line", "raw"),
    *("user_id", "item_id", "request_id", "user_key", "item_key", "request_key", "ts_us", "request_ts_us"),
    *(
        "request_ts",
        "history_end",
        "timeline_version",
        "history_item_id",
        "history_action",
        "history_ts",
        "owner",
        "kept",
    ),
}

_RESERVED_PREFIXES = ("_", "label ", "row ", "request ", "number ", "unfit ")


def check_id_type(found: str, *more: str) -> None:
    if found not in ("auto", "int", "string", "hash", *more):
        raise ValueError(
            f"mapping: id type {', '.join(('auto', 'int', 'string', *more))} or hash required, found {found!r}"
        )


@dataclass(frozen=True, kw_only=True)
class IdRule:
    """An id.

    columns: names, of which a file has one.
    type: int, string, hash, or auto (int if most of the first rows have integers). Texts of items get dense ids of a
        vocabulary, but with hash their hash; those of users and requests are always hashed. url, of items: URLs that
        lead to one page are one item.
    rules: path of the rules file of type url; without one, all parameters of a URL are kept.
    all_of: whether the id is made of all these columns; it is a string then, their values joined by |.
    """

    columns: tuple[str, ...]
    type: str = "auto"
    all_of: bool = False
    rules: str = ""

    def __post_init__(self) -> None:
        check_id_type(self.type, "url")
        if self.rules and self.type != "url":
            raise ValueError(f"mapping: rules only with type url, found type {self.type!r}")
        if self.all_of and (self.type in ("int", "url") or len(self.columns) < 2):
            raise ValueError(
                f"mapping: an id of all_of needs two columns or more and is a string, found {self.columns!r}, type "
                f"{self.type!r}"
            )

    def sources(self, name: str) -> dict[str, tuple[str, ...]]:
        """What is read of it: internal name -> the names that the column may have."""
        if not self.all_of:
            return {name: self.columns}
        return {f"{name}+{number}" if number else name: (column,) for number, column in enumerate(self.columns)}


@dataclass(frozen=True, kw_only=True)
class TimeRule:
    """The time of a row.

    columns: names, of which a file has one.
    unit: unit of numbers, s, ms, us or ns; "order" if they are no times but places in an order, whole numbers.
    formats: strptime patterns of text, tried in turn; if there are none, text is ISO 8601.
    zone: IANA time zone of times that name none.
    earliest, latest: moments outside of which a time is absurd; a latest of None is a day after the reading.
    """

    columns: tuple[str, ...]
    unit: str = "s"
    formats: tuple[str, ...] = ()
    zone: str = "UTC"
    earliest: datetime = datetime(1990, 1, 1, tzinfo=UTC)
    latest: datetime | None = None

    def __post_init__(self) -> None:
        if self.unit not in TIME_UNITS_US and not self.is_order:
            raise ValueError(f"mapping: [time] unit s, ms, us or ns required, found {self.unit!r}")
        if self.earliest.timestamp() < 0:
            raise ValueError(f"mapping: [time] earliest must be 1970 or later, found {self.earliest}")

    @property
    def is_order(self) -> bool:
        return self.unit == ORDER


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """A label: the number of a column, as it is or as 0 or 1; whether it has one of some values; or a constant.

    columns: names, of which a file has one.
    at_least: number from which on the label is 1, else 0; None keeps the number, which must be whole.
    lowest, highest: range of the number.
    value: constant of a log without such a column.
    one_of: texts with which the label is 1, with others 0.
    listed: whether the column is a list, and the label 1 of the candidates that it holds.
    """

    name: str
    columns: tuple[str, ...] = ()
    at_least: float | None = None
    lowest: float = 0.0
    highest: float = 1.0
    value: int | None = None
    one_of: tuple[str, ...] = ()
    listed: bool = False

    def __post_init__(self) -> None:
        if not self.lowest <= self.highest:
            raise ValueError(
                f"mapping: label {self.name}: a range from low to high required, found {self.lowest:g} to "
                f"{self.highest:g}"
            )
        if self.value is not None and not -(2**31) <= self.value < 2**31:
            raise ValueError(f"mapping: label {self.name}: a value of 32 bits required, found {self.value}")
        if sum((self.at_least is not None, self.value is not None, bool(self.one_of), self.listed)) > 1:
            raise ValueError(f"mapping: label {self.name}: one of at_least, value, one_of and listed_in, found several")

    @property
    def dtype(self) -> str:
        """int32; int64 for numbers that are kept as they are and whose range int32 does not hold."""
        is_kept = bool(self.columns) and self.at_least is None and not (self.one_of or self.listed)
        is_narrow = self.lowest >= -(2**31) and self.highest < 2**31
        return "int64" if is_kept and not is_narrow else "int32"


@dataclass(frozen=True, kw_only=True)
class FeatureRule:
    """A request-level or item-level column to keep, with its type in the tables."""

    name: str
    columns: tuple[str, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in FEATURE_TYPES:
            raise ValueError(
                f"mapping: {self.name}: dtype one of {', '.join(FEATURE_TYPES)} required, found {self.dtype!r}"
            )


@dataclass(frozen=True, kw_only=True)
class CandidateRule:
    """The candidates of a request, all on its one row.

    columns: names, of which a file has one: a list, or text.
    separator: text between the candidates, and between the elements of the columns that go along with them.
    label: name of the label that each candidate carries after `label_separator`; None if labels are columns.
    position: whether the place in the list is kept.
    rules: path of the rules file of candidates of type url; without one, all parameters of a URL are kept.
    """

    columns: tuple[str, ...]
    separator: str = " "
    label: str | None = None
    label_separator: str = "-"
    position: bool = False
    rules: str = ""

    def __post_init__(self) -> None:
        if not self.separator or not self.label_separator:
            raise ValueError(
                "mapping: [candidates] a separator and a label_separator of at least one character required"
            )


@dataclass(frozen=True, kw_only=True)
class HistoryRule:
    """The history of a request.

    columns: names of the log's own history, of which a file has one; if there are none, it is made of earlier rows.
    separator: text between its items.
    time_columns: names of the times of its items, epoch milliseconds.
    action: value of history_action for its items (bit i: label i).
    events: which earlier rows make a history, those with a positive label ("engaged") or "all".
    arrival_columns: names of when a row reached the platform, as [time] is written; a history made of earlier rows has
        those that had arrived before the request, in the order of arrival. If there are none, a row arrives when it
        happens, and so does one without a value.
    """

    columns: tuple[str, ...] = ()
    separator: str = " "
    time_columns: tuple[str, ...] = ()
    arrival_columns: tuple[str, ...] = ()
    action: int = 1
    events: str = "engaged"

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("mapping: [history] a separator of at least one character required")
        if not -(2**31) <= self.action < 2**31:
            raise ValueError(f"mapping: [history] an action of 32 bits required, found {self.action}")
        if self.events not in ("engaged", "all"):
            raise ValueError(f'mapping: [history] events "engaged" or "all" required, found {self.events!r}')
        if self.arrival_columns and self.columns:
            raise ValueError(
                "mapping: [history] an arrival_column only where histories are made of earlier rows, found it beside "
                "a column of the log's own histories"
            )


@dataclass(frozen=True, kw_only=True)
class LogMapping:
    """Everything needed to read one kind of log.

    request_scope: within what request ids are unique, log, file or user.
    session_gap_s: pause after which a new request starts if the log has no request ids, in seconds; 0: every row is a
        request of its own.
    format: csv, tsv, jsonl or parquet; None leaves it to the file's ending.
    separator: text between the fields; None leaves it to the file's structure.
    escape: "\\\\" if a backslash takes away the meaning of a quote in a quoted field, "" if it is a character as others
        are; None rejects the records in which that makes a difference.
    header: whether the first record is one; "auto" if it names a mapped column.
    columns: names of the fields if there is no header.
    files: patterns of file names in a folder; the first one that fits decides.
    quotes: whether a quote opens a field of text; else it is a character as others are, and a line a record.
    null_values: texts that mean missing; None: NULL_VALUES, but for strings of JSON and Parquet in text columns none.
    """

    user_id: IdRule
    time: TimeRule
    item_id: IdRule | None = None
    request_id: IdRule | None = None
    request_scope: str = "log"
    labels: tuple[LabelRule, ...] = ()
    request_columns: tuple[FeatureRule, ...] = ()
    item_columns: tuple[FeatureRule, ...] = ()
    candidates: CandidateRule | None = None
    candidate_id_type: str = "auto"
    history: HistoryRule = field(default_factory=HistoryRule)
    session_gap_s: float = DEFAULT_SESSION_GAP_S
    format: str | None = None
    separator: str | None = None
    escape: str | None = None
    header: bool | str = "auto"
    columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    null_values: tuple[str, ...] | None = None
    quotes: bool = True

    def __post_init__(self) -> None:
        if (self.item_id is None) == (self.candidates is None):
            raise ValueError("mapping: item_id (one row per impression) or [candidates] (one row per request) required")
        check_id_type(self.candidate_id_type, "url")
        if self.candidates and self.candidates.rules and self.candidate_id_type != "url":
            raise ValueError(f"mapping: rules only with type url, found type {self.candidate_id_type!r}")
        if self.format not in (None, "csv", "tsv", "jsonl", "parquet"):
            raise ValueError(f"mapping: format csv, tsv, jsonl or parquet required, found {self.format!r}")
        if self.separator is not None and (not self.separator or set(self.separator) & set('"\r\n')):
            raise ValueError(f"mapping: separator without quotes and line ends required, found {self.separator!r}")
        if self.escape not in (None, "", "\\"):
            raise ValueError(f"mapping: escape '\\' or '' required, found {self.escape!r}")
        if self.header not in (True, False, "auto"):
            raise ValueError(f'mapping: header true, false or "auto" required, found {self.header!r}')
        if self.header is False and not self.columns:
            raise ValueError("mapping: header = false needs `columns`, the names of the fields in order")
        if self.request_scope not in ("log", "file", "user"):
            raise ValueError(f"mapping: request_scope log, file or user required, found {self.request_scope!r}")
        if not (self.session_gap_s == 0 or 1 <= self.session_gap_s < float("inf")):
            raise ValueError(
                "mapping: session_gap_s of at least 1 s, or 0 (every row is a request of its own), required, found "
                f"{self.session_gap_s:g}"
            )
        if self.time.is_order and self.session_gap_s and not (self.request_id or self.candidates):
            raise ValueError(
                f"mapping: an order has no pauses: request_id, or session_gap_s = 0, required, found "
                f"session_gap_s = {self.session_gap_s:g}"
            )
        if any(label.listed for label in self.labels) and not self.candidates:
            raise ValueError("mapping: listed_in needs [candidates]: it says which of them have the label")
        names = [*self.label_names, *(rule.name for rule in self.request_columns + self.item_columns)]
        names += ["position"] if self.candidates and self.candidates.position else []
        names += [ITEM_URL] if self.are_urls else []
        if "url" in (self.user_id.type, self.request_id.type if self.request_id else ""):
            raise ValueError("mapping: type url only of items, found it of user_id or request_id")
        for name in names:
            lower = name.lower()  # engines that do not tell cases apart read these tables too
            if lower in _RESERVED or names.count(name) > 1 or not name or lower.startswith(_RESERVED_PREFIXES):
                raise ValueError(
                    f"mapping: every label and column needs a name of its own, {name!r} is taken; rename it"
                )
        if not 1 <= len(self.labels) <= MAX_LABELS:
            raise ValueError(f"mapping: from 1 to {MAX_LABELS} labels required, found {len(self.labels)}")

    @property
    def are_urls(self) -> bool:
        """Whether items are named by URLs."""
        return (self.item_id.type if self.item_id is not None else self.candidate_id_type) == "url"

    @property
    def url_rules(self) -> str:
        """Path of the rules file of items that are named by URLs, "" without one."""
        return next((rule.rules for rule in (self.item_id, self.candidates) if rule is not None), "")

    @property
    def hashes_items(self) -> bool:
        """Whether ids of items that are texts are hashed."""
        return (self.item_id.type if self.item_id is not None else self.candidate_id_type) == "hash"

    @property
    def missing_texts(self) -> list[str]:
        """Texts that mean missing in a field of delimited text, and wherever a number, time or bool is wanted."""
        return list(NULL_VALUES if self.null_values is None else self.null_values)

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def read_names(self) -> set[str]:
        """Labels and columns that are read from the log, not constant."""
        labels = {label.name for label in self.labels if label.value is None}
        return labels | {rule.name for rule in self.request_columns + self.item_columns}

    @property
    def list_separators(self) -> dict[str, str]:
        """Internal names of the columns that hold a list, or text separated by this."""
        lists = dict.fromkeys(("history", "history_times"), self.history.separator)
        if self.candidates:
            along = [name for name in self.sources() if name.startswith(("label ", "row "))]  # listed ones, too
            lists |= dict.fromkeys(("candidates", *along), self.candidates.separator)
        return lists

    def sources(self) -> dict[str, tuple[str, ...]]:
        """What is read: internal name -> the names that the column may have in a file, of which it has one."""
        wanted = {**self.user_id.sources("user"), "time": self.time.columns}
        if self.request_id:
            wanted |= self.request_id.sources("request")
        if self.item_id:
            wanted |= self.item_id.sources("item")
        if self.candidates:
            wanted["candidates"] = self.candidates.columns
        if self.history.columns:
            wanted["history"] = self.history.columns
        if self.history.time_columns:
            wanted["history_times"] = self.history.time_columns
        if self.history.arrival_columns:
            wanted[ARRIVAL] = self.history.arrival_columns
        wanted.update({f"label {rule.name}": rule.columns for rule in self.labels if rule.columns})
        wanted.update({f"request {rule.name}": rule.columns for rule in self.request_columns})
        wanted.update({f"row {rule.name}": rule.columns for rule in self.item_columns})
        return wanted
