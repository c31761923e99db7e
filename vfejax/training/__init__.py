"""Training as pure functions: losses, metrics, schedules, steps, sharding."""
