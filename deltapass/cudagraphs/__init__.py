"""Variants as CUDA graphs: captured once, then replayed with one launch a call."""
