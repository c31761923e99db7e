"""``vfejax compress``: options, teacher, student, run and report."""
