"""The run time: which step a call belongs to, and which variant may run."""
