"""Trials: short what-if fits on a copy of the model, so that the model itself says which cause holds."""
