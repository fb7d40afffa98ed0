"""The model as a machine: load it, run it forward, decode with it, and take log-probabilities from it."""
