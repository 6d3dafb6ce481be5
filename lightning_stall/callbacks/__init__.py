"""The public callbacks, one a file; none imports another."""
