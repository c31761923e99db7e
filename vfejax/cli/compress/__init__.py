"""``vfejax train``: options, data, run and pictures."""
