"""Lazy data: xarray in, xarray out, nothing computed."""
