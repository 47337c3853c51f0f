"""What the records of published data mean: formats, columns, conversations."""
