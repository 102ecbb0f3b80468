"""The benchmark suite: methods side by side, at equal measured time, and the page of it."""
