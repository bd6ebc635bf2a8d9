"""What helps others to test what they build on Perdure."""
