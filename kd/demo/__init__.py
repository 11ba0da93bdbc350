"""``python -m kd.demo``: the whole of the main job on embedded data, in minutes, on two CPU cores."""
