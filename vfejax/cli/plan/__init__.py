"""``vfejax plan``: options, worlds, episodes and pictures."""
