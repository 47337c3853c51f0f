"""The weight change itself: spectra, differences, matched and intruding directions."""
