"""One question per file: behaviour, patching, attribution, spectra, difference, where."""
