"""The optimizer's steps: objective, optimizer, guard, checkpoints, and the loop that runs them."""
