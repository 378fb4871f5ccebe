"""Explanations as graphs of PyTorch's operations, without Python between them."""
