"""Watching a forward pass: every call that the model makes is made here, and recorded."""
