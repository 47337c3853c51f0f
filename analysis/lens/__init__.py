"""What an adapter reads and writes, token by token."""
