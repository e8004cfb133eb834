"""One complete, frozen configuration of a training run, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

from reqdedup.arrays.windows import HistoryCut
from reqdedup.batch import RequestBatch
from reqdedup.models.config import ModelConfig
from reqdedup.models.registry import config_from_dict, config_to_dict, kind_of
from reqdedup.training.conversions import ConversionLoss, Positive, check_positives
from reqdedup.training.devices import DeviceKind, Precision
from reqdedup.training.loss import check_same_user_share
from reqdedup.training.optimizers import TableOptimizer
from reqdedup.training.ranking_loss import RankingLoss, Within
from reqdedup.training.split import SplitBy, Splits

_FILES = ("foundation", "item_vectors", "teacher", "warm_start")
"""Fields that are paths: what a run begins with, and the teacher that it learns from."""

LogQ = Literal["exact", "streaming", "none"]
Negatives = Literal["batch", "catalogue"]
LEAST: dict[str, int] = {
    **dict.fromkeys(("max_epochs", "patience", "clip_norm", "hide_events", "shard_tables_from"), 0),
    **dict.fromkeys(("eval_requests", "history_stride", "prefetch_batches", "warmup_steps", "weight_decay"), 0),
    **dict.fromkeys(("label_maturity_s", "rate_factors"), 0),
    **dict.fromkeys(("buffer_requests", "checkpoint_every", "chunk_rows", "pieces", "validate_every"), 1),
    "negatives_per_step": 1,
    "catalogue_items": 2,
}
"""Of numbers, and of each number of a table, the least that means something."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one model is trained; the model's configuration decides the task.

    model: TwoTowerConfig (retrieval: masked InfoNCE over in-batch negatives, or a softmax over the catalogue),
        DCATConfig or EarlyRankerConfig (ranking: `ranking_loss` over its labels, missing ones left out), or
        FoundationConfig (pre-training: InfoNCE of events and those that come after them).
    foundation: checkpoint of a foundation model whose tables of items and events and whose transformer the model begins
        with (`reqdedup.models.foundation.beginning`); empty: none. Of the paths here, a run that is resumed needs
        the teacher's alone, and one that is evaluated none.
    teacher: checkpoint of a trained ranking model whose probabilities are mixed into the labels with the weight
        `teacher_weight` (`reqdedup.training.teacher`); empty: none.
    item_vectors: bundle of a retrieval model of the same log whose item vectors the model reads beside its own tables
        (`reqdedup.models.known_vectors`); needs the model's item_vector_width; empty: none.
    num_steps: optimiser steps.  requests_per_step: over all ranks, each takes its equal part.
    warm_start: a checkpoint of the same model to go on from, with the requests that are later than those it learned
        from (`reqdedup.training.warm_start`); empty: none. It, the foundation and the teacher must not have read what
        the run is judged by (`reqdedup.training.held_out`).
    max_epochs: passes over the training requests, after which training ends whatever num_steps says; 0: no limit. A
        second pass over a log is known to hurt models with embeddings of ids.
    learning_rate: at its highest, after `warmup_steps`; from there it decays linearly to zero.  weight_decay: of AdamW.
    table_optimizer: adagrad (row-wise, sparse) or adamw (dense), of embedding tables.  table_learning_rate: of adagrad.
    shard_tables_from: tables of at least so many rows lie in parts on the ranks, whose rows travel to who reads them
        (`reqdedup.training.sharded`); 0: every rank has all. Needs table_optimizer adagrad.
    rate_factors: of parameters whose names begin so, on both rates: {"transformer": 0.1, "embedding": 0} lets the
        transformer learn at a tenth and leaves the tables as they are.
    pieces: parts that each rank cuts its requests of a step into, computed one after the other: less memory, the same
        step, but norms and in-batch negatives know of their own piece alone.
    recompute_layers: keep only what the transformer's layers give, and compute their insides again for the gradient.
    clip_norm: largest norm of the gradient of all but adagrad's tables; 0: as it is.
    hide_events: share of the events of the histories that training hides in each step.  permute_judgements: each user's
        rows of a batch in a new order in each step, and histories that follow (`reqdedup.training.augment`); for logs
        whose order says little, as ratings. Of ranking, with shuffle="users", which has a user's rows in one batch.
    device: cpu, or cuda with a GPU for each rank.  precision: of the matrix products, float32 or bfloat16 (autocast).
    world_size: ranks W, processes on this machine.  seed: of weights, order of requests, and the held-out users.
    sync_batchnorm: statistics over all ranks; off only to see what sorting costs without it.
    shuffle, buffer_requests, chunk_rows, prefetch_batches: of the RequestLoader.
    history_stride: of the anchored windows if the log's histories are longer than model.max_history; 0 means a
        quarter of it.
    positive_label: retrieval learns from the rows where it is positive; None means every row.
    ranking_loss: cross_entropy of each row, or pairwise or listwise: positive rows beside the negatives of their
        request, or of their user's rows in the step (`contrast_within`).  focal_gamma, positive_weight: of
        cross_entropy; see `reqdedup.training.ranking_loss`.
    label_maturity_s: by label, its attribution window [s]: rows of requests that are younger, counted from the log's
        newest request, have no such label yet: they are left out, in evaluation too, and are not negative.
    positives: of retrieval; (label, weight, duration column, cap [s]) of each label that makes a row worth learning, in
        place of positive_label, by which the model is judged; one user head scores them all, or one each if the model
        has `heads`.  hard_negative_weight: of the rows of the same request without any of them; 0: they are no
        negatives.  coarse_column: column of the rows that groups items; "" for none.  coarse_weight: of the loss over
        groups. See `reqdedup.training.conversions`.
    negatives: of retrieval; batch: items of other users' rows in the batch (masked InfoNCE), or catalogue: a softmax
        over all items but those of the history.  negatives_per_step: at most so many items of the catalogue, drawn anew
        each step.  temperature: of the retrieval scores (cosines).  mask_same_user, same_user_share, log_q: see
        `info_nce`.
    gather_negatives: contrast with the items of all ranks; W ranks then equal one process on the whole batch.
    split_by: user, time or last; see `reqdedup.training.split`.  held_out: share of users, or of requests by time, kept
        for evaluation; by last, more than 0 keeps one request of a user.  validation: the same, kept to watch the
        training.  eval_requests: at most so many held-out requests are evaluated.
    slice_by: whole-number columns of the request, each of whose values gets figures of its own.
    baselines: judge the rules and shallow models of `reqdedup.training.judgement.baselines` on the same rows.
    catalogue_items: at most so many items, drawn by hash, a retrieved item competes with.
    validate_every: steps between looks at the validation part, if there is one; the best weights are kept.
    patience: looks without a better figure, after which training ends; 0: never.
    checkpoint_every: steps between checkpoints; there is always one at the end.
    collective_timeout_s: a rank that waits longer for another ends the run.
    """

    model: ModelConfig
    num_steps: int
    requests_per_step: int
    learning_rate: float
    warmup_steps: int = 10
    weight_decay: float = 0.0
    warm_start: str = ""
    max_epochs: int = 1
    foundation: str = ""
    item_vectors: str = ""
    teacher: str = ""
    teacher_weight: float = 0.5
    table_optimizer: TableOptimizer = "adagrad"
    table_learning_rate: float = 0.1
    shard_tables_from: int = 0
    clip_norm: float = 0.0
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    pieces: int = 1
    recompute_layers: bool = False
    hide_events: float = 0.0
    permute_judgements: bool = False
    device: DeviceKind = "cpu"
    precision: Precision = "float32"
    world_size: int = 2
    seed: int = 0
    sync_batchnorm: bool = True
    shuffle: Literal["requests", "users", "none"] = "requests"
    buffer_requests: int = 2048
    chunk_rows: int | None = None
    prefetch_batches: int = 2
    history_stride: int = 0
    positive_label: str | None = "click"
    ranking_loss: RankingLoss = "cross_entropy"
    contrast_within: Within = "request"
    focal_gamma: float = 0.0
    positive_weight: float = 1.0
    label_maturity_s: Mapping[str, float] = field(default_factory=dict)
    positives: tuple[Positive, ...] = ()
    hard_negative_weight: float = 0.0
    coarse_column: str = ""
    coarse_weight: float = 0.5
    negatives: Negatives = "batch"
    negatives_per_step: int = 4096
    temperature: float = 0.2
    mask_same_user: bool = True
    same_user_share: float = 0.0
    log_q: LogQ = "exact"
    gather_negatives: bool = True
    split_by: SplitBy = "user"
    held_out: float = 0.1
    validation: float = 0.0
    eval_requests: int = 2048
    slice_by: tuple[str, ...] = ()
    baselines: bool = True
    catalogue_items: int = 10_000
    validate_every: int = 100
    patience: int = 0
    checkpoint_every: int = 200
    collective_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.world_size < 1 or self.requests_per_step < self.world_size:
            raise ValueError(
                "training: num_steps and world_size of at least 1 and a request per rank and step required, found "
                f"{self.num_steps} steps, {self.world_size} ranks, {self.requests_per_step} requests per step"
            )
        self._check_numbers()
        if self.hide_events >= 1:
            raise ValueError(f"training: hide_events below 1 required, found {self.hide_events}")
        for name in ("learning_rate", "table_learning_rate", "temperature", "collective_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"training: {name} above 0 required, found {getattr(self, name)}")
        if not 0 <= self.held_out <= self.held_out + self.validation < 1:
            raise ValueError(
                "training: held_out and validation from 0, together below 1, required, found "
                f"{self.held_out} and {self.validation}"
            )
        object.__setattr__(self, "slice_by", tuple(self.slice_by))
        check_same_user_share(self.same_user_share, self.mask_same_user)
        for name, kind in (
            ("log_q", LogQ),
            ("negatives", Negatives),
            ("ranking_loss", RankingLoss),
            ("contrast_within", Within),
            ("table_optimizer", TableOptimizer),
            ("split_by", SplitBy),
            ("device", DeviceKind),
            ("precision", Precision),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"training: {name} one of {get_args(kind)} required, found {getattr(self, name)!r}")

        if self.shard_tables_from and self.table_optimizer != "adagrad":
            raise ValueError(
                f"training: table_optimizer='adagrad' required with shard_tables_from, found {self.table_optimizer!r}"
            )
        if bool(self.item_vectors) != bool(self.model.item_vector_width):
            raise ValueError(
                "training: item_vectors and the model's item_vector_width required together, found "
                f"{self.item_vectors!r} and {self.model.item_vector_width}"
            )
        self._check_ranking()
        self._check_conversions()

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            of_table = isinstance(value, Mapping)
            for one in value.values() if of_table else (value,):
                if (of_table and not isinstance(one, (int, float))) or (isinstance(one, float) and not isfinite(one)):
                    raise ValueError(f"training: {name}: a finite number required, found {one!r}")
        for name, least in LEAST.items():
            value = getattr(self, name)
            for one in value.values() if isinstance(value, Mapping) else (value,):
                if one is not None and one < least:
                    raise ValueError(f"training: {name} of at least {least} required, found {one}")

    def _check_ranking(self) -> None:
        if 0 < self.focal_gamma < 1 or self.focal_gamma < 0:
            raise ValueError(
                f"training: focal_gamma of 0, or of at least 1, required, found {self.focal_gamma}; below 1 its "
                "gradient has no bound"
            )
        if self.positive_weight <= 0:
            raise ValueError(f"training: positive_weight above 0 required, found {self.positive_weight}")
        if self.ranking_loss != "cross_entropy" and (self.focal_gamma, self.positive_weight) != (0, 1):
            raise ValueError(
                f"training: focal_gamma and positive_weight are of cross_entropy, found ranking_loss "
                f"{self.ranking_loss}; leave them out"
            )
        labels = getattr(self.model, "labels", ())
        if self.permute_judgements and (self.task != "ranking" or self.shuffle != "users"):
            raise ValueError(
                "training: permute_judgements makes histories of a user's rows in a batch: a ranking model and "
                f"shuffle='users' required, found {self.task} and {self.shuffle!r}"
            )
        if not 0 <= self.teacher_weight <= 1:
            raise ValueError(f"training: teacher_weight in [0, 1] required, found {self.teacher_weight}")
        if self.teacher and (not labels or self.ranking_loss != "cross_entropy"):
            raise ValueError(
                "training: a teacher says probabilities: a ranking model and ranking_loss='cross_entropy' required, "
                f"found {self.task} and {self.ranking_loss}"
            )
        if unknown := sorted(set(self.label_maturity_s) - set(labels)):
            raise ValueError(
                f"training: label_maturity_s: labels of the model required, found {', '.join(unknown)}; it has "
                f"{', '.join(labels) or 'none'}"
            )

    def _check_conversions(self) -> None:
        object.__setattr__(self, "positives", tuple(tuple(one) for one in self.positives))
        check_positives(self.positives)
        if self.hard_negative_weight < 0 or self.coarse_weight < 0:
            raise ValueError(
                "training: hard_negative_weight and coarse_weight of at least 0 required, found "
                f"{self.hard_negative_weight} and {self.coarse_weight}"
            )
        heads, labels = getattr(self.model, "heads", ()), [label for label, *_ in self.positives]
        if heads and (sorted(heads) != sorted(labels) or heads[0] != self.positive_label):
            raise ValueError(
                "training: a head of the model for each label of positives, that of positive_label first, required, "
                f"found heads {', '.join(heads)} with positives {', '.join(labels) or 'none'} and positive_label "
                f"{self.positive_label}"
            )
        if self.conversion_loss is not None and self.task != "retrieval":
            raise ValueError(
                "training: positives, hard_negative_weight and coarse_column are of retrieval, found a task of "
                f"{self.task}"
            )
        if self.negatives != "batch" and (self.hard_negative_weight or self.coarse_column):
            raise ValueError(
                "training: hard_negative_weight and coarse_column are of negatives='batch', found "
                f"{self.negatives!r}, where the request's other items are negatives anyway"
            )

    @property
    def conversion_loss(self) -> ConversionLoss | None:
        """None if a row with a positive label is as good as another, and its negatives are other users' rows."""
        if not (self.positives or self.hard_negative_weight or self.coarse_column):
            return None
        positives = self.positives or (((self.positive_label, 1.0, "", 0.0),) if self.positive_label else ())
        if not positives:
            raise ValueError(
                "training: a positive_label, or positives, required with hard negatives or groups, found none"
            )
        return ConversionLoss(
            positives=positives,
            heads=getattr(self.model, "heads", ()),
            hard_negative_weight=self.hard_negative_weight,
            coarse_column=self.coarse_column,
            coarse_weight=self.coarse_weight,
            gather=self.gather_negatives,
            temperature=self.temperature,
            mask_same_user=self.mask_same_user,
            same_user_share=self.same_user_share,
        )

    @property
    def task(self) -> str:
        """What the model is trained for: `retrieval`, `ranking` or `pretraining`."""
        return kind_of(self.model).task

    def splits(self, batches: Iterable[RequestBatch]) -> Splits:
        """The parts of a table. batches: this rank's share of it, keys and times; a collective unless split by user
        without a validation part."""
        return Splits.of(self.split_by, batches, held_out=self.held_out, validation=self.validation, seed=self.seed)

    @property
    def history_cut(self) -> HistoryCut:
        """What the model sees of a history."""
        return HistoryCut(max_events=self.model.max_history, stride=self.history_stride)

    @property
    def requests_per_rank(self) -> int:
        """Requests that one rank takes per step; the rest of an uneven division is left out."""
        return self.requests_per_step // self.world_size

    def steps_of(self, num_requests: int) -> int:
        """Steps of training with so many requests, of which ranks get equally many, to one (`reqdedup.training.plan`):
        num_steps, or fewer if max_epochs ends before."""
        if not self.max_epochs:
            return self.num_steps
        per_epoch = -(-num_requests // (self.requests_per_rank * self.world_size))
        return min(self.num_steps, max(1, self.max_epochs * per_epoch))

    def rate_at(self, step: int, num_steps: int) -> float:
        """Share of the learning rates at step 0, 1, ...: linear warm-up, then linear decay that would reach zero at
        num_steps."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warmup * max(0.0, 1 - step / num_steps)

    def with_absolute_paths(self) -> TrainingConfig:
        """The same files, wherever they are read from later; an address (s3://...) stays as it is."""
        paths = {name: getattr(self, name) for name in _FILES}
        here: dict[str, Any] = {
            name: str(Path(path).absolute()) for name, path in paths.items() if path and "://" not in path
        }
        return replace(self, **here)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` is the inverse."""
        return {**asdict(self), "model": config_to_dict(self.model)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        values = dict(values)
        task = values.pop("task", None)
        try:
            return cls(**{**values, "model": config_from_dict(values["model"], task=task)})
        except (TypeError, KeyError) as error:
            raise ValueError(f"training configuration: a field is unknown or missing: {error}") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)


def check_same_run(path: Path, state: Mapping[str, Any], config: TrainingConfig, snapshot_id: int | None) -> None:
    """Raises ValueError unless the checkpoint `state` at `path` is of this configuration and snapshot."""
    then = {
        **_flat(TrainingConfig.from_dict(state["config"]).with_absolute_paths()),
        "snapshot_id": state["snapshot_id"],
    }
    now = {**_flat(config.with_absolute_paths()), "snapshot_id": snapshot_id}
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            raise ValueError(
                f"{path}: resuming needs the configuration and snapshot of the checkpoint, {name} = "
                f"{then.get(name)!r}, found {now.get(name)!r}; train into a new directory, or pass the same ones"
            )


def _flat(config: TrainingConfig) -> dict[str, Any]:
    """The fields by name, those of the model as model.NAME."""
    values = config.to_dict()
    model = values.pop("model")
    return {**values, **{f"model.{name}": value for name, value in model.items()}}
