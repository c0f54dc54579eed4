"""Which prompts are worth training on."""
