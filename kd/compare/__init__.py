"""``kd compare`` and ``kd ablate``: many students of one teacher, trained alike, in one table."""
