"""What is compared: ways to sample, chosen by name."""
