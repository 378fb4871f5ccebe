"""What is kept of a model's calls, and what is known of the tensors between them."""
