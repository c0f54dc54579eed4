"""Small policies for two CPU cores: made from scratch, or around a small language model."""
