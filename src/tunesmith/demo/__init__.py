"""The task that ``tunesmith demo`` shows: its rows, and the story told around them."""
