"""Where activations are mixed, and how: the hooks of one forward pass."""
