"""The life of a request-level feature, from its first computation to its place in the main table.

    values     what a compute function returns, as the deduplicated form of its columns
    backfill   computed for all requests, or for some users, and written beside the main table
    replace    computed into a table by its name: added, or anew in another form, in one commit
    staging    the same on a branch that readers do not see: checked, then published or dropped
    checks     what a staged feature must hold
    versions   tags, and the way back to one
    promote    many features folded into the main table in one pass

What a feature table is, and its form without keys, is in `storage.feature_table` and `storage.feature_positions`.
"""

from reqdedup.storage.features.backfill import FeatureReport, add_request_feature, realign
from reqdedup.storage.features.checks import feature_checks, features_current
from reqdedup.storage.features.promote import PromoteReport, promote
from reqdedup.storage.features.replace import compute_features, replace_feature_table
from reqdedup.storage.features.staging import StagedFeature, stage_request_feature, staged_feature, staged_features
from reqdedup.storage.features.versions import drop_tag, rollback_to, tag, tags

__all__ = [
    "FeatureReport",
    "PromoteReport",
    "StagedFeature",
    "add_request_feature",
    "compute_features",
    "drop_tag",
    "feature_checks",
    "features_current",
    "promote",
    "realign",
    "replace_feature_table",
    "rollback_to",
    "stage_request_feature",
    "staged_feature",
    "staged_features",
    "tag",
    "tags",
]
