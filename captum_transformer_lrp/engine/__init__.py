"""The engine: a watched forward pass, and three backward phases over it."""
