"""Cases written after the tenth part, without sight of the package or of any other part."""
