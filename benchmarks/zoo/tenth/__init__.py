"""Cases written after the ninth part, without sight of the package or of any other part."""
