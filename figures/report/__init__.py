"""The report: findings in words, tables, answers, one HTML file."""
