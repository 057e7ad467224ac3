"""The process runs out of something."""
