"""A fourteenth part, written by authors who had read none of the package."""
