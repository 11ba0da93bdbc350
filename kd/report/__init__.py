"""``kd report``: one self-contained page about finished trainings."""
