"""Cases written after the eleventh part, without sight of the package or of any other part."""
