"""The data that flows between the stages: programs of calls, sizes, and how a program runs."""
