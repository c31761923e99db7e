"""``vfejax simulate``: options, problem, run and pictures."""
