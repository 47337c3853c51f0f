"""Records of the analyses of what an adapter reads and writes."""
