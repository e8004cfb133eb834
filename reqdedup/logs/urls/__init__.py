"""What one item is where items are named by URLs: which parameters lead to another page is learned, then applied."""

from reqdedup.logs.urls.fingerprints import BodyChecksum, ContentTable
from reqdedup.logs.urls.guard import RulesChange, RulesRefused, UrlDifference, compare_rules, diff_urls, publish
from reqdedup.logs.urls.miqps import Learned, learn
from reqdedup.logs.urls.normalise import Normaliser, UrlCounts
from reqdedup.logs.urls.rules import Rules, load_rules
from reqdedup.logs.urls.series import LearnConfig

__all__ = [
    "BodyChecksum",
    "ContentTable",
    "LearnConfig",
    "Learned",
    "Normaliser",
    "Rules",
    "RulesChange",
    "RulesRefused",
    "UrlCounts",
    "UrlDifference",
    "compare_rules",
    "diff_urls",
    "learn",
    "load_rules",
    "publish",
]
