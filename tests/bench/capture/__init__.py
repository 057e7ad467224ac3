"""Group `capture`: what it costs to capture, and pods of one node with and without a proxy between them."""
