"""What notebooks call and show, and how they are run in batch."""
