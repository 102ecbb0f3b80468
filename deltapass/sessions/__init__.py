"""The state of requests: trajectories, their deltas, and what was done with them."""
