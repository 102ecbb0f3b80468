"""Tune: the schedule itself, searched on the final samples."""
