"""Loader (the only bridge from storage to torch), loss, synchronised BatchNorm, frequencies, metrics and the loop."""

from reqdedup.models.checkpoint import load_model
from reqdedup.training.config import TrainingConfig
from reqdedup.training.evaluation import Evaluation, evaluate_run
from reqdedup.training.launch import RankError
from reqdedup.training.loader import RequestLoader
from reqdedup.training.loop import TrainingResult, export_run, train
from reqdedup.training.loss import info_nce
from reqdedup.training.norm import SyncBatchNorm1d, convert_sync_batchnorm
from reqdedup.training.progress import TrainingProgress
from reqdedup.training.report import read_losses, read_metrics, trained_on, training_report
from reqdedup.training.split import UserSplit

__all__ = [
    "Evaluation",
    "RankError",
    "RequestLoader",
    "SyncBatchNorm1d",
    "TrainingConfig",
    "TrainingProgress",
    "TrainingResult",
    "UserSplit",
    "convert_sync_batchnorm",
    "evaluate_run",
    "export_run",
    "info_nce",
    "load_model",
    "read_losses",
    "read_metrics",
    "train",
    "trained_on",
    "training_report",
]
