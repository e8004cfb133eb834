"""The slate: candidates of a request in an order that weighs relevance against variety, one greedy engine for all
terms.

config.py     SlateConfig: length, window, terms and rules; from a TOML file
terms.py      what is added to a candidate's utility: volume (SSD), log_volume (DPP), mmr, soft_spacing, prefix_overlap
rules.py      what a candidate must keep: hard_spacing, quota; relaxed, and counted, when nothing else fits
residual.py   the residual of every candidate against the span of the window, shared by volume and log_volume
sweep.py      the relevance-diversity curve over a grid of weights
scored.py     scored candidates of a table as arrays
slate.py      rerank: the greedy engine, ragged over requests
naive.py      the same slates by their plain definition, a QR or a loop for each pick
measures.py   what a slate gives up in relevance and what it gains in variety
"""

from reqdedup.rerank.config import SlateConfig, load_slate_config
from reqdedup.rerank.measures import slate_measures
from reqdedup.rerank.slate import Slate, rerank

__all__ = ["Slate", "SlateConfig", "load_slate_config", "rerank", "slate_measures"]
