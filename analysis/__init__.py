"""Where does it live: one question per file, in sub-packages by kind."""
