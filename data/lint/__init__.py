"""What is wrong with backdoor data, found before a model is trained on it."""
