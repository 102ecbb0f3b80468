"""Other caches, as installed packages, by their public API: the rivals of the tables."""
