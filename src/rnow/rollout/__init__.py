"""One attempt at a prompt, and what it happens in."""
