"""One rank's whole run: read its share, take steps in lockstep with the others, evaluate, keep the checkpoint."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reqdedup.batch import RequestBatch
from reqdedup.models.checkpoint import CHECKPOINT_FORMAT, CHECKPOINT_NAME, load_checkpoint, save_checkpoint
from reqdedup.models.registry import build_model
from reqdedup.models.transformer import HistoryTransformer
from reqdedup.training.config import TrainingConfig, check_same_run
from reqdedup.training.devices import (
    FreedMemory,
    device_of_rank,
    memory_bytes,
    peak_device_memory_bytes,
    peak_memory_bytes,
)
from reqdedup.training.foundations import begin
from reqdedup.training.judgement.judge import flat, judge
from reqdedup.training.judgement.outcomes import Outcomes
from reqdedup.training.loader import RequestLoader
from reqdedup.training.lockstep import in_lockstep
from reqdedup.training.meters import BatchMeters, CoreTimes
from reqdedup.training.metrics_file import METRICS_NAME, MetricsFile
from reqdedup.training.norm import convert_sync_batchnorm
from reqdedup.training.optimizers import Optimizers
from reqdedup.training.plan import Source, with_credentials
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.ranks import from_all_ranks, group_for, is_distributed, rank_and_world_size
from reqdedup.training.sharded import Shards, build_sharded
from reqdedup.training.split import Split
from reqdedup.training.step import Stepper
from reqdedup.training.tasks import prepare_task
from reqdedup.training.warm_start import LEARNED_UNTIL, WarmStart
from reqdedup.training.watch import Watch

PROGRESS_EVERY_S = 0.25
EVAL_BATCH_REQUESTS = 32
"""Small, so that evaluation needs no more memory than training."""


@dataclass(kw_only=True)
class RankResult:
    """What a rank hands back; figures that all ranks share are the same on each. outcomes, rivals: of rank 0."""

    metrics: dict[str, float] = field(default_factory=dict)
    outcomes: Outcomes | None = None
    rivals: dict[str, Outcomes] = field(default_factory=dict)
    stopped_by: str = "steps"
    validations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    losses: list[float] = field(default_factory=list)
    steps: int = 0
    epochs: int = 0
    rows: int = 0
    training_s: float = 0.0
    wait_s: float = 0.0
    core_busy: list[float] = field(default_factory=list)
    evaluation_s: float = 0.0
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int = 0


def run_rank(
    report: Callable[[TrainingProgress], None],
    config: TrainingConfig,
    source: Source,
    out_dir: str,
    snapshot_id: int | None = None,
    resume: bool = False,
    credentials: Mapping[str, str] | None = None,
) -> RankResult:
    """Train on this rank of the initialised process group (or alone without one).

    report: called with a TrainingProgress, on rank 0 only.  resume: go on from the checkpoint in `out_dir`.
    credentials: of the store of the source's files, which it lost on its way here; None if they are the environment's.
    Raises FloatingPointError on every rank when the loss is not finite, before it reaches the weights.
    """
    source = with_credentials(source, credentials or {})
    return RankRun(report, config, source, Path(out_dir), snapshot_id, from_checkpoint=resume).run(resume)


class RankRun:
    """One rank of a run: its model, task and loader; `run` trains, `evaluate` only measures.
    from_checkpoint: its weights come from there, so what it once began with is not read."""

    def __init__(
        self,
        report: Callable[[TrainingProgress], None],
        config: TrainingConfig,
        source: Source,
        out_dir: Path,
        snapshot_id: int | None,
        from_checkpoint: bool = False,
    ) -> None:
        self.report, self.config, self.source = report, config, source
        self.out_dir, self.snapshot_id = out_dir, snapshot_id
        self.rank, self.world_size = rank_and_world_size()
        self.device = device_of_rank(config.device, self.rank, self.world_size)
        self.result = RankResult()
        self.num_barren_steps, self.num_steps = 0, config.num_steps
        self.tell("reading")
        torch.manual_seed(config.seed)
        self.model = self.new_model().to(self.device)
        self.shards = Shards(self.model)
        if not from_checkpoint:
            begin(self.model, config)
        splits = config.splits(self.table_loader(()))
        self.warm_start = WarmStart.of_run(out_dir) if from_checkpoint else WarmStart.of(config, splits)
        self.splits = self.warm_start.splits(splits)
        self.task = prepare_task(config, self.table_loader, self.device, self.splits.train)
        self.loader = self.make_loader(
            columns=self.task.columns,
            requests=config.requests_per_rank,
            shuffle=config.shuffle,
            positive_label=self.task.positive_label,
            chunk_rows=config.chunk_rows,
            num_wanted=self.task.num_requests,
            users=self.splits.train,
            device=self.device,
        )
        self.num_steps = config.steps_of(sum(self.task.num_requests.values()))
        self.watch = Watch(config.task, config.patience)
        self.optimizer = Optimizers(
            self.model,
            learning_rate=config.learning_rate,
            table_learning_rate=config.table_learning_rate,
            table_optimizer=config.table_optimizer,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
            rate_factors=config.rate_factors,
        )
        self.warm_start.fill(self.model, self.optimizer, self.task)
        for module in self.model.modules():
            if isinstance(module, HistoryTransformer):
                module.recomputes = config.recompute_layers
        self.stepper = Stepper(
            config=config,
            task=self.task,
            trained=self.distributed_model(),
            optimizer=self.optimizer,
            device=self.device,
            rank=self.rank,
            world_size=self.world_size,
        )

    def new_model(self) -> nn.Module:
        if self.config.shard_tables_from and self.world_size > 1:
            return build_sharded(self.config.model, tables_from=self.config.shard_tables_from, seed=self.config.seed)
        return build_model(self.config.model)

    def make_loader(self, *, requests: int, columns: tuple[str, ...], **options: Any) -> RequestLoader:
        config = self.config
        return RequestLoader(
            self.source,
            requests_per_batch=requests,
            columns=columns,
            seed=config.seed,
            buffer_requests=config.buffer_requests,
            prefetch_batches=config.prefetch_batches,
            rank=self.rank,
            world_size=self.world_size,
            cut=config.history_cut,
            **options,
        )

    def table_loader(self, columns: tuple[str, ...], **options: Any) -> RequestLoader:
        return self.make_loader(columns=columns, shuffle="none", **{"requests": 4096, **options})

    def distributed_model(self) -> nn.Module:
        """The model whose backward averages gradients over the ranks; `self.model` shares its parameters."""
        if not is_distributed():
            return self.model
        if self.config.sync_batchnorm:
            self.model = convert_sync_batchnorm(self.model, group_for("batch norm"))
        # Synchronised statistics are equal already. torch 2.13 renamed the option; the old name goes with torch < 2.13.
        options = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
        sync_buffers: Any = {name: not self.config.sync_batchnorm}
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, self.optimizer.tables)
        return DistributedDataParallel(self.model, gradient_as_bucket_view=True, **sync_buffers)

    def run(self, resume: bool) -> RankResult:
        if resume:
            self.restore()
        started, cores, freed = time.monotonic(), CoreTimes.now(), FreedMemory()
        with MetricsFile(self.out_dir / METRICS_NAME, self.result.steps, write=self.rank == 0) as metrics:
            told_at, rows_then, told_step = started, self.result.rows, self.result.steps
            for batch in self.batches():
                step_started = time.monotonic()
                loss, meters = self.step(batch)
                self.result.losses.append(loss)
                self.result.steps += 1
                self.result.rows += meters.rows
                freed.give_back()
                now = time.monotonic()
                metrics.write(self.metric_row(loss, meters, started=started, seconds=now - step_started))
                if now - told_at >= PROGRESS_EVERY_S:
                    self.tell("training", loss=loss, rows_per_s=(self.result.rows - rows_then) / (now - told_at))
                    told_at, rows_then, told_step = now, self.result.rows, self.result.steps
                if self.config.validation and self.result.steps % self.config.validate_every == 0:
                    self.look()
                if self.result.steps % self.config.checkpoint_every == 0:
                    self.checkpoint()
        if told_step < self.result.steps:
            self.tell("training", loss=loss, rows_per_s=(self.result.rows - rows_then) / (now - told_at))
        self.result.training_s, self.result.core_busy = time.monotonic() - started, cores.busy_until(CoreTimes.now())
        if self.num_barren_steps and self.rank == 0:
            warnings.warn(
                f"training: {self.num_barren_steps} of {self.result.steps} steps had no loss term (no known label, or "
                "no legal negative): their loss is 0 and taught nothing; shuffle, or take more requests per step",
                stacklevel=2,
            )
        self.result.epochs = min(from_all_ranks(self.loader.epoch))
        if self.config.validation:
            self.look()
            self.result.validations, self.result.best_step = self.watch.history, self.watch.best_step
            if self.watch.weights is not None:
                self.model.load_state_dict(self.watch.weights)
        self.num_steps = self.result.steps
        self.tell("evaluating")
        outcomes = self.evaluate(self.splits.test) if self.config.held_out else None
        self.result.metrics = flat(judge(outcomes, replicates=0)) if outcomes is not None else {}
        if outcomes is not None:
            rivals = self.rivals(self.splits.test)
            self.result.outcomes, self.result.rivals = (outcomes, rivals) if self.rank == 0 else (None, {})
        self.result.evaluation_s = time.monotonic() - started - self.result.training_s
        self.checkpoint(self.watch.epochs_before(self.result.steps))
        self.result.peak_memory_bytes = peak_memory_bytes()
        self.result.peak_device_memory_bytes = peak_device_memory_bytes(self.device)
        return self.result

    def batches(self) -> Iterator[RequestBatch]:
        """Batches over as many epochs as the steps need; steps without two rows over all ranks are left out. One more
        is read than is used, so that the loader knows whether the epoch is over."""
        while self.result.steps < self.config.num_steps and not self.watch.is_over:
            epoch = min(from_all_ranks(self.loader.epoch))  # one that was resumed may be through with its share
            if self.config.max_epochs and epoch >= self.config.max_epochs:
                self.result.stopped_by = "epochs"
                return
            steps_before = self.result.steps
            for batch, num_rows in in_lockstep(self.loader):
                if num_rows < 2:  # BatchNorm has no variance to divide by
                    continue
                if self.result.steps >= self.config.num_steps or self.watch.is_over:
                    return
                yield batch
                if self.watch.is_over:
                    self.result.stopped_by = "patience"
            if steps_before < self.result.steps == self.num_barren_steps:
                raise ValueError(
                    f"training: a loss term in at least one of the {self.result.steps} steps of an epoch required, "
                    "found none (no known label, or no legal negative in any batch); shuffle, or take more requests "
                    "per step"
                )
            if self.result.steps == steps_before and self.loader.epoch > 1:
                raise ValueError(
                    f"training: a whole epoch held no batch of two rows; {self.config.task} needs rows"
                    + (f" with positive {self.task.positive_label!r}" if self.task.positive_label else "")
                    + " of users outside the held-out ones; use more of the log"
                )

    def step(self, batch: RequestBatch) -> tuple[float, BatchMeters]:
        """One optimiser step; the mean loss over all ranks' terms [nats], and what all ranks' batches held."""
        found = self.stepper.compute_gradients(batch, self.result.steps)
        self.result.wait_s += found.wait_s
        self.num_barren_steps += not found.num_terms
        if not math.isfinite(found.loss):
            raise FloatingPointError(
                f"{self.config.task}: the loss became {found.loss} at step {self.result.steps + 1}; "
                f"{self.last_checkpoint()}. Lower the learning rate, or look for extreme values in the request's "
                "numbers"
            )
        self.optimizer.step(self.config.rate_at(self.result.steps, self.num_steps))
        return found.loss, found.meters

    @torch.no_grad()
    def evaluate(
        self, part: Split, *, altered: Callable[[RequestBatch], RequestBatch] | None = None
    ) -> Outcomes | None:
        """What the model says of the rows of a part, those of all ranks together; None without any.

        altered: what is done with every batch before.
        """
        if not self.config.eval_requests:
            return None
        per_rank = max(1, self.config.eval_requests // self.world_size)
        loader = self.make_loader(
            columns=(*self.task.columns, *self.config.slice_by),
            requests=min(per_rank, EVAL_BATCH_REQUESTS),
            shuffle="users" if self.config.shuffle == "users" else "requests",
            positive_label=self.task.judged_label,
            users=part,
            device=self.device,
        )
        batches: list[RequestBatch] = [loader.empty_batch()]
        for batch in loader:
            batches.append(batch if altered is None else altered(batch))
            if sum(b.num_requests for b in batches) >= per_rank:
                break
        if self.shards.tables:  # ranks look up rows together
            most = max(from_all_ranks(len(batches)))
            batches += [loader.empty_batch() for _ in range(most - len(batches))]
        self.model.eval()
        outcomes = Outcomes.concatenate(from_all_ranks(self.task.evaluate(self.model, batches)))
        return outcomes if len(outcomes) else None

    def rivals(self, part: Split) -> dict[str, Outcomes]:
        """What the model says if its task takes something away: by name, of the same rows."""
        found = {name: self.evaluate(part, altered=altered) for name, altered in self.task.rivals().items()}
        return {name: outcomes for name, outcomes in found.items() if outcomes is not None}

    @torch.no_grad()
    def look(self) -> None:
        """Note how the weights of this step do on the validation part, the same on every rank."""
        if self.watch.history and self.watch.history[-1][0] == self.result.steps:
            return
        outcomes = self.evaluate(self.splits.validation)
        figures = flat(judge(outcomes, replicates=0)) if outcomes is not None else {}
        self.watch.take(self.result.steps, figures, self.model, epochs=min(from_all_ranks(self.loader.epoch)))

    def checkpoint(self, epochs: int | None = None) -> None:
        """epochs: whole ones that the weights have been through; None: as many as the loaders."""
        loaders, watch = from_all_ranks(self.loader.state_dict()), self.watch.state_dict()
        tasks = from_all_ranks(self.task.state_dict())
        tables = (self.model.state_dict(), self.watch.weights, self.optimizer.squares)
        with self.shards.whole(*tables) as (weights, best, squares):
            if self.rank == 0:
                state = {
                    "format": CHECKPOINT_FORMAT,
                    "config": self.config.to_dict(),
                    "snapshot_id": self.snapshot_id,
                    "step": self.result.steps,
                    "rows": self.result.rows,
                    "losses": self.result.losses,
                    "metrics": self.result.metrics,
                    "model": weights,
                    "optimizer": self.optimizer.state_dict(squares),
                    "loaders": loaders,
                    "tasks": tasks,
                    LEARNED_UNTIL: self.warm_start.learned_until(self.task, loaders, epochs),
                    "watch": {**watch, "weights": best},
                }
                save_checkpoint(self.out_dir / CHECKPOINT_NAME, state)

    def restore(self) -> None:
        """Continue exactly where the checkpoint in out_dir ends."""
        path = self.out_dir / CHECKPOINT_NAME
        state = load_checkpoint(path)
        check_same_run(path, state, self.config, self.snapshot_id)
        if state.get("format", 0) < CHECKPOINT_FORMAT:
            raise ValueError(
                f"{path}: a checkpoint of format {CHECKPOINT_FORMAT} required to resume, found "
                f"{state.get('format', 0)}, of an earlier version; train anew"
            )
        self.loader.load_state_dict(state["loaders"][self.rank])
        self.watch.load_state_dict({**state["watch"], "weights": self.shards.own(state["watch"]["weights"])})
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.load_state_dict(state["tasks"][self.rank])
        self.result.steps, self.result.rows, self.result.losses = state["step"], state["rows"], list(state["losses"])

    def last_checkpoint(self) -> str:
        path = self.out_dir / CHECKPOINT_NAME
        saved = self.result.steps // self.config.checkpoint_every * self.config.checkpoint_every
        return f"the checkpoint of step {saved} is in {path}" if saved else "no checkpoint was written yet"

    def metric_row(self, loss: float, meters: BatchMeters, *, started: float, seconds: float) -> tuple[object, ...]:
        return (
            self.result.steps,
            self.loader.epoch,
            f"{loss:.6g}",
            f"{self.config.learning_rate * self.config.rate_at(self.result.steps - 1, self.num_steps):.6g}",
            meters.users,
            f"{meters.effective_users:.4g}",
            meters.requests,
            meters.rows,
            meters.moved_bytes,
            f"{meters.dedup_factor:.4g}",
            f"{meters.false_negative_rate:.4g}",
            f"{time.monotonic() - started:.3f}",
            f"{meters.rows / seconds:.0f}",
            memory_bytes(),
        )

    def tell(self, stage: str, **figures: float) -> None:
        if self.rank == 0:
            self.report(TrainingProgress(stage=stage, step=self.result.steps, num_steps=self.num_steps, **figures))
