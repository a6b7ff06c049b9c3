"""Judging a tuned model against its base: scores of rows, metrics over answers, and the paired comparison."""
