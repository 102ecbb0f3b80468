"""Lowerings, one a file: each turns a body (a small static graph) into a callable."""
