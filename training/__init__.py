"""The parts of train.py: its arguments, what a run is made of, its epochs and folder, what several processes share."""
