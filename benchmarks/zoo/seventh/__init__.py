"""Seventh part: small programs, each with one planted fault, and healthy runs that resemble them."""
