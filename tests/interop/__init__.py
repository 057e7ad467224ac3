"""Foreign programs at the other end."""
