"""What a model must beat: rules and shallow models that a team would try first, in numpy.

    retrieval   Popularity, LastItem, ItemNeighbours, Ease, and ImplicitFactors if the package `implicit` is installed
    ranking     ItemMean, ItemUserMean

Those of retrieval are fitted on `Interactions` and score every item for each history, those of ranking on rows with
labels. They are judged beside a model on the same split: `reqdedup.training.judgement.baselines`.
"""

from reqdedup.models.baselines.factors import ImplicitFactors
from reqdedup.models.baselines.interactions import Histories, Interactions
from reqdedup.models.baselines.linear import Ease, ItemNeighbours
from reqdedup.models.baselines.means import ItemMean, ItemUserMean
from reqdedup.models.baselines.simple import LastItem, Popularity

__all__ = [
    "Ease",
    "Histories",
    "ImplicitFactors",
    "Interactions",
    "ItemMean",
    "ItemNeighbours",
    "ItemUserMean",
    "LastItem",
    "Popularity",
]
