"""Schedules made for one pipeline: weights fitted to its own trajectories."""
