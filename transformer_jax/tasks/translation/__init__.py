"""Translation: sentence pairs, BLEU, a `Translator`."""
