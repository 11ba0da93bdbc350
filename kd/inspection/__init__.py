"""``kd inspect``: pictures of what a student has learnt from its teacher, and where it has not."""
