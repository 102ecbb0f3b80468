"""Calibrate: the weights of a schedule's cached rows, fitted on some trajectories."""
