"""Multiply-accumulates of whole trajectories, and the paper's own columns of them counted again."""
