"""Schedules made for a model on its own trajectories; here, what runs these: loops."""
