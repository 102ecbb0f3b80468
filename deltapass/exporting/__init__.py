"""Writing plan bundles."""
