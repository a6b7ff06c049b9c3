"""Rows in, token ids with supervision out: reading, checking, templates and batches."""
