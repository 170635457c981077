"""`rnow test`: a few rollouts, shown and kept."""
