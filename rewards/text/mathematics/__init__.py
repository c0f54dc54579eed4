"""Answers of mathematics: formulas found, read whole, bounded in size and compared."""
