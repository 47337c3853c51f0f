"""Where published data lies: text, tables, columnar files, folders and the hub."""
