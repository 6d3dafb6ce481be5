"""A fourth part of the zoo, written apart from the package and from the other parts."""
