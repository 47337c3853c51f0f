"""Which rendering of prompts an adapter was trained with, judged by what it finds likely."""
