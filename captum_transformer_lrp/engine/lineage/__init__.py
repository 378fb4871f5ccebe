"""What a recorded forward pass means: where pixels lie, which pass and which tokens are whose."""
