"""What everything stands on: families, loading, prompts, adapter algebra, records, run folders."""
