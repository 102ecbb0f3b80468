"""What every step of a trajectory does, as pure data: rules, presets, budgets, files."""
