"""Methods that fit: negative fine-tuning, repair, NPO, ascent, CROW, TSBD."""
