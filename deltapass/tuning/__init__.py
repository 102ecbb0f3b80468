"""Trajectories of one pipeline or loop, run under any schedule: what schedules are made on."""
