"""Numbers as people write them: in words, with units and scales, and with words that take them back."""
