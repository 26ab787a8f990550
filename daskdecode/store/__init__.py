"""The study store: the only code that knows the Zarr layout."""
