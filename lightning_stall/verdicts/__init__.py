"""From measured numbers to what is said of them: floats in, words out."""
