"""Measurements: pure functions of tensors, which stay on their device."""
