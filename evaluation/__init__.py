"""Does it misbehave: answers, success rules, ASR, FTR, accuracy, perplexity, degeneration."""
