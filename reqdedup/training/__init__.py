"""Loader (the only bridge from storage to torch), loss, synchronised BatchNorm, frequencies, metrics and the loop."""

from reqdedup.training.loader import RequestLoader
from reqdedup.training.loss import info_nce
from reqdedup.training.norm import SyncBatchNorm1d, convert_sync_batchnorm

__all__ = ["RequestLoader", "SyncBatchNorm1d", "convert_sync_batchnorm", "info_nce"]
