"""A step of a past run once more."""
