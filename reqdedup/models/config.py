"""What a model reads and how large it is: frozen configurations, built by hand or from a log's schema.

`from_schema` takes every column that it can use, so a log with only user, item, time and a label gives a working model
and a full log one with context, embeddings and item features. `columns` says which of them a loader must read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from reqdedup.models.derived import Derived
from reqdedup.schema import (
    HISTORY_END,
    HISTORY_ITEM_ID,
    HISTORY_TS,
    REQUEST_TS,
    TIMELINE_VERSION,
    Column,
    EngagementSchema,
    Kind,
)

Positions = Literal["learned", "rope"]
PositionsFrom = Literal["start", "end"]
HistoryAttention = Literal["causal", "bidirectional"]
ShareContext = Literal["request", "user"]
LayerKind = Literal["softmax", "hstu"]
_HISTORY_PREFIX = "history_"
LATER_FIELDS: dict[str, Any] = {
    "dropout": 0.0,
    "pooling": "mean",
    "layer": "softmax",
    "item_bias": False,
    "random_candidates": 0.0,
    "tower": "mlp",
    "cross_layers": 2,
    "cross_rank": 16,
    "context_categories": (),
    "context_vectors": (),
    "context_dropout": 0.5,
    "context_from": "logged",
    "fusion": "concat",
    "heads": (),
    "item_numbers": (),
    "item_vector_width": 0,
    "derived_request": (),
    "derived_item": (),
}
"""Fields that configurations of version 0.1.0 do not have, and what these mean by it."""
_NO_FEATURE = (REQUEST_TS, HISTORY_END, TIMELINE_VERSION, HISTORY_TS, HISTORY_ITEM_ID)
_CATEGORY_TYPES = ("bool", "int32", "int64")
_NUMBER_TYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Inputs, by the names that they have in a RequestBatch, and the sizes that both models share.

    history_categories: sequence columns besides item_id, each hashed into a table of its own and added to the token.
    request_categories, request_numbers: scalar request columns; numbers enter as sign(x) log(1 + |x|), NaN and
        infinite ones as 0.
    request_vectors: (name, width) of the request's vector columns.
    item_categories, item_numbers: integer, and fractional, item-level columns of the candidate; numbers as of requests.
    derived_request, derived_item: features that follow from columns of the request, or of the candidate
        (`reqdedup.models.derived`).
    item_vector_width: of vectors that something else made of each item, added to events and candidates through a
        projection (`reqdedup.models.known_vectors`); 0: none.
    item_table_rows: rows of the hashed item table, which histories and candidates share.
    category_table_rows: rows of each hashed table of a category.
    width: D of the transformer.  num_heads: H, a divisor of D.  feature_width: of each request category and vector.
    num_layers: layers of the history transformer.  ffn_width: its hidden width.
    layer: softmax (attention, then an FFN) or hstu (pointwise attention with a gate, no FFN; causal alone).
    positions: learned (a table) or rope (rotary).  positions_from: where they are counted from, the
        history's start or end.
    history_attention: causal, or bidirectional: every event of a history sees all others (a candidate it never sees).
    share_context: request, or user: neighbouring requests of one user whose histories begin at the same event share one
        pass (`RequestBatch.context_groups`). The result is the same; it needs causal attention and
        positions from the start.
    max_history: S, the longest history [events] of a table of learned positions; longer ones are refused.
    hidden_widths: hidden layers of the MLP, each Linear, BatchNorm1d, ReLU.
    dropout: share of the numbers set to zero in training: of tokens and candidates, and of what each layer adds.
    """

    history_categories: tuple[str, ...] = ()
    request_categories: tuple[str, ...] = ()
    request_vectors: tuple[tuple[str, int], ...] = ()
    request_numbers: tuple[str, ...] = ()
    item_categories: tuple[str, ...] = ()
    item_numbers: tuple[str, ...] = ()
    derived_request: tuple[Derived, ...] = ()
    derived_item: tuple[Derived, ...] = ()
    item_vector_width: int = 0
    item_table_rows: int = 65_536
    category_table_rows: int = 256
    width: int = 64
    num_heads: int = 2
    num_layers: int = 2
    ffn_width: int = 128
    feature_width: int = 16
    max_history: int = 512
    positions: Positions = "learned"
    positions_from: PositionsFrom = "start"
    history_attention: HistoryAttention = "causal"
    share_context: ShareContext = "request"
    hidden_widths: tuple[int, ...] = (128, 64)
    dropout: float = 0.0
    layer: LayerKind = "softmax"

    def __post_init__(self) -> None:
        for field in fields(self):  # lists of a JSON file become tuples, so that equal configurations compare equal
            value = getattr(self, field.name)
            if isinstance(value, list):
                frozen = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
                object.__setattr__(self, field.name, frozen)
        self._derive()
        name = type(self).__name__
        for field_name in ("item_table_rows", "category_table_rows", "width", "num_heads", "num_layers", "ffn_width"):
            if getattr(self, field_name) < 1:
                raise ValueError(f"{name}: {field_name} of at least 1 required, found {getattr(self, field_name)}")
        if self.width % self.num_heads:
            raise ValueError(f"{name}: num_heads must divide width, found {self.num_heads} heads of {self.width}")
        for field_name, choices in (
            ("positions", get_args(Positions)),
            ("positions_from", get_args(PositionsFrom)),
            ("history_attention", get_args(HistoryAttention)),
            ("share_context", get_args(ShareContext)),
            ("layer", get_args(LayerKind)),
        ):
            if getattr(self, field_name) not in choices:
                raise ValueError(f"{name}: {field_name} one of {choices} required, found {getattr(self, field_name)!r}")
        if self.share_context == "user" and (self.history_attention, self.positions_from) != ("causal", "start"):
            raise ValueError(
                f"{name}: share_context='user' needs causal attention and positions counted from the start, else the "
                f"keys and values of an earlier request are no prefix of a later one's; found {self.history_attention} "
                f"attention and positions from the {self.positions_from}; take those, or share_context='request'"
            )
        if self.layer == "hstu" and self.history_attention != "causal":
            raise ValueError(f"{name}: layer='hstu' needs causal attention, found {self.history_attention}")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"{name}: rope turns pairs, so width / num_heads must be even, found {self.head_width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"{name}: dropout in [0, 1) required, found {self.dropout}")
        if not self.hidden_widths or min(self.hidden_widths) < 1:
            raise ValueError(f"{name}: hidden_widths, at least one, required, found {self.hidden_widths}")

    def _derive(self) -> None:
        """Derived features of a file become what they are. Raises ValueError for two of one name."""
        for field_name in ("derived_request", "derived_item"):
            derived = (one if isinstance(one, Derived) else Derived(**one) for one in getattr(self, field_name))
            object.__setattr__(self, field_name, tuple(derived))
        names = [one.name for one in (*self.derived_request, *self.derived_item)]
        if taken := [name for name in names if names.count(name) > 1 or name in self.columns]:
            raise ValueError(
                f"{type(self).__name__}: derived features: names that no other input has required, found {taken[0]}"
            )

    @property
    def item_columns(self) -> tuple[str, ...]:
        """Item-level columns that the model reads."""
        sources = (name for one in self.derived_item for name in one.columns)
        return tuple(dict.fromkeys((*self.item_categories, *self.item_numbers, *sources)))

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.num_heads

    @property
    def columns(self) -> tuple[str, ...]:
        """Names in the log's schema of the feature columns that the model reads; keys and labels come on top."""
        history = (HISTORY_ITEM_ID, *(_HISTORY_PREFIX + name for name in self.history_categories))
        vectors = tuple(name for name, _ in self.request_vectors)
        shared = (HISTORY_END, TIMELINE_VERSION) if self.share_context == "user" else ()
        sources = (name for one in self.derived_request for name in one.columns)
        request = (*self.request_categories, *vectors, *self.request_numbers, *sources)
        return tuple(dict.fromkeys((*history, *request, *self.item_columns, *shared)))

    @property
    def number_columns(self) -> tuple[str, ...]:
        """Request columns that are read as numbers."""
        return self.request_numbers

    @property
    def vector_columns(self) -> tuple[tuple[str, int], ...]:
        """(name, width) of the request's vectors."""
        return self.request_vectors

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` is the inverse. Fields of later versions are left out at the value
        that earlier versions stand for, so that these read the rest."""
        return {name: value for name, value in asdict(self).items() if LATER_FIELDS.get(name) != value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)


def inputs_of(schema: EngagementSchema, *, exclude: Iterable[str], numbers: Iterable[str]) -> dict[str, Any]:
    """The input fields of a ModelConfig from the columns of a log."""
    if HISTORY_ITEM_ID not in schema:
        raise ValueError(
            f"a model needs the sequence column {HISTORY_ITEM_ID}; the log has {', '.join(schema.names)}. Where one of "
            f"these holds the item ids of the history, convert the log with --rename COLUMN={HISTORY_ITEM_ID}"
        )
    left_out, counts = {*exclude, *_NO_FEATURE}, set(numbers)
    request = [column for column in schema.request_columns if column.name not in left_out]
    scalars = [column for column in request if column.kind is Kind.SCALAR]
    of_item = [column for column in schema.row_columns if column not in schema.labels and column.name not in left_out]

    def is_category(column: Column) -> bool:
        return column.dtype in _CATEGORY_TYPES and column.name not in counts

    return {
        "history_categories": tuple(
            column.name.removeprefix(_HISTORY_PREFIX)
            for column in request
            if column.kind is Kind.SEQUENCE and column.dtype in _CATEGORY_TYPES
        ),
        "request_vectors": tuple((column.name, column.width) for column in request if column.kind is Kind.VECTOR),
        "request_categories": tuple(column.name for column in scalars if is_category(column)),
        "request_numbers": tuple(
            column.name for column in scalars if column.dtype in _NUMBER_TYPES or column.name in counts
        ),
        "item_categories": tuple(column.name for column in of_item if column.dtype in _CATEGORY_TYPES),
        "item_numbers": tuple(column.name for column in of_item if column.dtype in _NUMBER_TYPES),
    }
