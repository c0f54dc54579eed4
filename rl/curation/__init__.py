"""Selection of training prompts."""
