"""Datasets, prompts and their order."""
