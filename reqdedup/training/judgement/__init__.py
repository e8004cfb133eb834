"""How good a run is, on requests that it did not learn from.

outcomes             what a model, or a rule without one, said of each held-out row
metrics              the plain definitions, which figures over weighted users must equal
measures             the same for many weightings of the users at once: intervals
judge                figures, slices, calibration, and the baselines beside the model
baselines            the baselines of ranking, and those of any run by its task
retrieval_baselines  the baselines of retrieval
catalogue_ranks      the rank of an item in a whole catalogue
"""
