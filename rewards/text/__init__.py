"""Finding answers in text."""
