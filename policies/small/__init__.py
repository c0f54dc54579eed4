"""Small policies for two CPU cores: from scratch, or from the weights of a small language model."""
