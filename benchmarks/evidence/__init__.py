"""Quality at equal measured time: what `equal_time.py` is made of."""
