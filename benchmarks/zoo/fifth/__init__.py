"""Fifth part: the plain reading of every code of the catalogue, and well trainings that look odd."""
