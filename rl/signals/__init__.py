"""Signals that end a run in order, and the process around a run that passes them on."""
