"""Following the calls of diffusers pipelines."""
