"""Text classification: labelled texts, accuracy, a `TextClassifier`."""
