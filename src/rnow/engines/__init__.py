"""Token ids in, ids and log-probabilities out."""
