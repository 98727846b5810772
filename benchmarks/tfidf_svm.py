"""Classic baseline for text classification: TF-IDF over words with a linear SVM, on the same files.

Command: python benchmarks/tfidf_svm.py --train FOLDER/train.csv.gz --test FOLDER/test.csv
(`pip install -e ".[peers]"` brings scikit-learn)
"""

import argparse
import json
import time

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from transformer_jax.tasks.classification.labelled import (
    AG_NEWS_CLASSES,
    AG_NEWS_COLUMNS,
    AG_NEWS_EXTRA_COLUMNS,
    read_labelled,
)


def main() -> None:
    """Write a JSON object to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, metavar="FILE", help="AG News's training rows")
    parser.add_argument("--extra", metavar="FILE", help="further training rows")
    parser.add_argument("--test", required=True, metavar="FILE", help="AG News's test rows")
    parser.add_argument("--ngrams", type=int, default=1, metavar="N", help="longest word n-gram [1]")
    parser.add_argument("--c", type=float, default=0.5, metavar="C", help="C of the SVM [0.5]")
    arguments = parser.parse_args()
    train = read_labelled(arguments.train, classes=AG_NEWS_CLASSES, columns=AG_NEWS_COLUMNS)
    if arguments.extra:
        train += read_labelled(arguments.extra, classes=AG_NEWS_CLASSES, columns=AG_NEWS_EXTRA_COLUMNS)
    test = read_labelled(arguments.test, classes=AG_NEWS_CLASSES, columns=AG_NEWS_COLUMNS)
    start = time.perf_counter()
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, arguments.ngrams))
    features = vectorizer.fit_transform([record.text for record in train])
    model = LinearSVC(C=arguments.c).fit(features, [record.label for record in train])
    said = model.predict(vectorizer.transform([record.text for record in test]))
    right = sum(guess == record.label for guess, record in zip(said, test, strict=True))
    report = {
        "accuracy": right / len(test),
        "train": len(train),
        "test": len(test),
        "features": len(vectorizer.vocabulary_),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
