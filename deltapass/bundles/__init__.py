"""Reading and running plan bundles."""
