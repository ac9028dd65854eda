"""What a run does when a step goes wrong."""
