"""Hyperparameter searches that dask-ml spreads over folds and candidates."""
