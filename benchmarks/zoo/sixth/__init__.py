"""Cases written from the catalogue of causes alone, code by code, and well trainings that mislead simple rules."""
