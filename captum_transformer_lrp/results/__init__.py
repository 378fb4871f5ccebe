"""One call, one result: images and texts explained for some of their classes."""
