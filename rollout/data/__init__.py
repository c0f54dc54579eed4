"""Datasets in, prompts out."""
