"""What the process has: the compiled extension, and whether torch records the call."""
