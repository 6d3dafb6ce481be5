"""A ninth part of the zoo: trainings from many desks, each sick one beside its mended twin."""
