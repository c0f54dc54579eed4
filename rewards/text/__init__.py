"""Answers, boxes and languages in text."""
