"""What is seen: figures, the trace as it changes, what the memory had to do with a decision, a page of it all."""
