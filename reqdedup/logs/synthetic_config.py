"""Size, shape and columns of a synthetic log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from reqdedup.arrays.windows import default_stride
from reqdedup.logs.catalogue import Catalogue
from reqdedup.schema import Column, EngagementSchema, Kind, Level

LABELS = ("click", "save", "long_dwell")
NUM_DEVICES, NUM_SURFACES = 3, 4
LOGNORMAL_P90 = 1.2815515655446004
"""The 90th percentile of a standard normal: how far p90 lies above the median, in sigmas of the logarithm."""


@dataclass(frozen=True, kw_only=True)
class SyntheticLogConfig:
    """Size and shape of a synthetic log. Times are UTC; numbers of requests, rows and events are lognormal.

    seed: any integer >= 0; with everything else equal, another seed is an independent log.
    end_ts: end of the log, fixed so that bytes do not depend on today.
    num_days: length of the log before `end_ts`, in days.
    num_users, num_items, num_categories: sizes of the populations; items may be millions.
    mean_requests_per_user, max_requests_per_user: number of a user's requests, at least one.
    mean_fan_out, max_fan_out: number of a request's rows, at least one.
    median_history, p90_history: length of a user's timeline before the first request, times `history_scale`, in events.
    history_scale: factor that shrinks timelines, and the rate of new events with them, for small recipes.
    max_history: length of the longest history that a request carries, at most 16,384 events.
    anchor_stride: distance between the possible starts of a cut history, in events; 0 means a quarter of max_history.
    account_days: time over which a timeline was filled, in days; it sets how many events arrive between two requests.
    new_user_share: ratio of users without any event before their first request.
    late_event_share: ratio of events that were ingested up to some hours late; history_ts is not sorted there.
    popularity_exponent: Zipf exponent of the items.
    latent_width: length of the factors.
    user_embedding_width: length of the noisy view of them that requests carry.
    embedding_noise: standard deviation added to the embedding, whose own is 1.
    mood_days: mean time for which one of a user's two tastes holds before the other takes its turn, in days; 0 means
        one taste for ever. What is liked now then follows from the order of the history, not from its items alone.
    taste_proposals: number of draws by popularity of which a taste-driven choice is the best.
    history_taste_share, candidate_taste_share: ratio of events and candidates chosen by taste, not popularity.
    click_intercept, affinity_weight, quality_weight, position_weight, logit_noise: terms of the click's logit,
        intercept + affinity_weight * affinity + quality_weight * quality - position_weight * ln(1 + position)
        + surface + logit_noise * normal.
    users_per_block: number of users made at once; it bounds memory.
    batch_bytes: size of a batch's sequences, in bytes; it bounds memory.
    """

    seed: int = 0
    end_ts: datetime = datetime(2025, 7, 1, tzinfo=UTC)
    num_days: int = 14
    num_users: int = 1_000
    num_items: int = 100_000
    num_categories: int = 64
    mean_requests_per_user: float = 3.0
    max_requests_per_user: int = 64
    mean_fan_out: float = 64.0
    max_fan_out: int = 512
    median_history: float = 8_600.0
    p90_history: float = 24_600.0
    history_scale: float = 1.0
    max_history: int = 16_384
    anchor_stride: int = 0
    account_days: float = 365.0
    new_user_share: float = 0.01
    late_event_share: float = 0.01
    popularity_exponent: float = 0.9
    latent_width: int = 16
    user_embedding_width: int = 32
    embedding_noise: float = 0.5
    mood_days: float = 0.0
    taste_proposals: int = 4
    history_taste_share: float = 0.8
    candidate_taste_share: float = 0.5
    click_intercept: float = -2.0
    affinity_weight: float = 1.5
    quality_weight: float = 0.5
    position_weight: float = 0.2
    logit_noise: float = 0.3
    users_per_block: int = 64
    batch_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if self.end_ts.tzinfo is None:
            raise ValueError(f"end_ts: a time with a zone required, found {self.end_ts}; add tzinfo=UTC")
        at_least_one = (
            *("num_days", "num_users", "num_categories", "latent_width", "user_embedding_width", "taste_proposals"),
            *("users_per_block", "batch_bytes", "max_requests_per_user", "max_fan_out"),
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1 required, found {getattr(self, name)}")
        if self.mood_days < 0:
            raise ValueError(f"mood_days: at least 0 required, found {self.mood_days}")
        if self.seed < 0:
            raise ValueError(f"seed: an integer >= 0 required, found {self.seed}")
        for mean, cap in (("mean_requests_per_user", "max_requests_per_user"), ("mean_fan_out", "max_fan_out")):
            if not 1 <= getattr(self, mean) <= getattr(self, cap):
                raise ValueError(
                    f"{mean}: from 1 to {cap} = {getattr(self, cap)} required, found {getattr(self, mean)}"
                )
        if not 2 * self.max_fan_out <= self.num_items < 2**31:
            raise ValueError(
                f"num_items: at least twice max_fan_out = {self.max_fan_out} and below 2^31 required, so that a "
                f"request has distinct candidates, found {self.num_items}"
            )
        if not 0 < self.median_history <= self.p90_history or self.history_scale <= 0 or self.account_days <= 0:
            raise ValueError("0 < median_history <= p90_history, history_scale > 0 and account_days > 0 required")
        if not 1 <= self.max_history <= 16_384:
            raise ValueError(f"max_history: from 1 to 16384 events required, found {self.max_history}")
        if not 0 <= self.anchor_stride <= self.max_history:
            raise ValueError(f"anchor_stride: from 0 to {self.max_history} required, found {self.anchor_stride}")
        for name in ("new_user_share", "late_event_share", "history_taste_share", "candidate_taste_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: from 0 to 1 required, found {getattr(self, name)}")

    @property
    def stride(self) -> int:
        """Events between possible starts of a cut history."""
        return self.anchor_stride or default_stride(self.max_history)

    @property
    def history_sigma(self) -> float:
        """Standard deviation of the logarithm of a timeline's length."""
        return math.log(self.p90_history / self.median_history) / LOGNORMAL_P90

    @property
    def num_blocks(self) -> int:
        return -(-self.num_users // self.users_per_block)

    @property
    def num_actions(self) -> int:
        """Vocabulary of history_action: one bit per label."""
        return 1 << len(LABELS)


def make_catalogue(config: SyntheticLogConfig) -> Catalogue:
    """The items of this log: factors, quality, categories and popularity by id."""
    return Catalogue(
        seed=config.seed,
        num_items=config.num_items,
        width=config.latent_width,
        num_categories=config.num_categories,
        popularity_exponent=config.popularity_exponent,
    )


def synthetic_schema(config: SyntheticLogConfig) -> EngagementSchema:
    """The columns of `synthesize(config)`."""

    def request(name: str, dtype: str, doc: str, kind: Kind = Kind.SCALAR, width: int = 0) -> Column:
        return Column(name=name, dtype=dtype, level=Level.REQUEST, doc=doc, kind=kind, width=width)

    actions = " + ".join(f"{1 << bit} {label}" for bit, label in enumerate(LABELS))
    return EngagementSchema(
        (
            Column(name="user_id", dtype="int64", level=Level.KEY, doc="the user"),
            Column(name="request_id", dtype="int64", level=Level.KEY, doc="the request, rising in time for each user"),
            Column(name="item_id", dtype="int64", level=Level.KEY, doc="the candidate item"),
            request("request_ts", "timestamp", "when the request was made, UTC"),
            request("history_end", "int64", "events in the user's timeline before the request, the cut ones included"),
            request("timeline_version", "int32", "version of the timeline that history_end counts in"),
            request("history_item_id", "int64", "items of the user's past engagements, oldest first", Kind.SEQUENCE),
            request("history_action", "int32", f"what the user did, bits: {actions}", Kind.SEQUENCE),
            request("history_ts", "int64", "when it happened, epoch milliseconds, before request_ts", Kind.SEQUENCE),
            request(
                "user_embedding", "float32", "noisy view of the user's taste", Kind.VECTOR, config.user_embedding_width
            ),
            request("device", "int32", f"device class, 0 to {NUM_DEVICES - 1}"),
            request("surface", "int32", f"where the request was shown, 0 to {NUM_SURFACES - 1}"),
            request("hour_of_day", "int32", "hour of request_ts, UTC, 0 to 23"),
            Column(name="item_category", dtype="int32", level=Level.ITEM, doc="category of the item"),
            Column(name="position", dtype="int32", level=Level.ITEM, doc="place in the list that was shown, from 0"),
            *(
                Column(name=name, dtype="int32", level=Level.LABEL, nullable=True, doc=f"1 where the user: {name}")
                for name in LABELS
            ),
        )
    )
