"""Where a model lives, what it is, and how it becomes a tokenizer and weights on a device."""
