"""What everything stands on: errors, options, registry, rows, statistics, progress."""
