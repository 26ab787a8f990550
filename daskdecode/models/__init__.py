"""Decoders with scikit-learn's conventions and nilearn's names."""
