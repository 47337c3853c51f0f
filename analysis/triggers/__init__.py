"""Looking for the trigger when nobody knows it."""
