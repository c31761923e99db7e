"""``vfejax filter``: options, models, estimates, pictures, and the stream of ``--online``."""
