"""What the benchmark of choices trains is the recipe, on one rank."""

from dataclasses import replace

import pytest

from assets.recipes import laptop
from benchmarks.recipe_choices import CHOICES, LOG, configuration
from reqdedup.logs import synthetic_schema


@pytest.mark.parametrize("task", CHOICES)
def test_it_trains_the_recipe(task):
    recipe = laptop(LOG.end_ts)
    assert recipe.log == LOG
    schema = synthetic_schema(LOG)
    made = recipe.ranking_training(schema) if task == "ranking" else recipe.retrieval_training(schema)
    assert configuration(task, schema, max_epochs=made.max_epochs) == replace(made, world_size=1)
    assert {"max_epochs": made.max_epochs} in CHOICES[task]
