"""The parts of train.py: its arguments, recipe, run folder, and what several processes share."""
