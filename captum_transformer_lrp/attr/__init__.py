"""The attribution methods, one class for each."""
