import csv
import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.classification.labelled import KINDS, Labelled, join_columns, read_extra, read_labelled

CLASSES = ("World", "Sports", "Business", "Sci/Tech")


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        content = text.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.csv", '"2","He ""wins"", again","Over, and\nout"\n"4"," A chip ",""\n'),
        ("header.csv", 'id,Class,Title,Description\n7,2,"He ""wins"", again","Over, and\nout"\n\n8,4,A chip,\n'),
        ("headline.csv.gz", '\ufeffheadline,label\n"He ""wins"", again Over, and\nout",Sports\nA chip,Sci/Tech\n\n'),
        ("index.CSV.GZ", 'Class Index,Review\n2,"He ""wins"", again Over, and\nout"\nSci/Tech,A chip\n'),
        ("objects.jsonl", '{"text": "He \\"wins\\", again Over, and\\nout", "label": 2}\n\n'
                          '{"label": "4", "text": "A chip"}'),
        ("names.jsonl.gz", '{"label": "Sports", "text": "He \\"wins\\", again Over, and\\nout", "x": 1}\n'
                           '{"label": " Sci/Tech ", "text": " A chip "}\n'),
    ],
)  # fmt: skip
def test_every_form(write, name, text):
    expected = [Labelled('He "wins", again Over, and\nout', "Sports"), Labelled("A chip", "Sci/Tech")]
    assert read_labelled(write(name, text), classes=CLASSES) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.tsv", '2\t"He" wins, again\tOver "and out\r\n4\tA chip\t\r\n'),
        ("Text.TSV", 'text\ttitle\tcategory\n"He" wins, again Over "and out\tx\tSports\nA chip\ty\t4\n'),
        ("sentence.tsv", 'sentence\tsentiment\n"He" wins, again Over "and out\tSports\nA chip\tSci/Tech\n'),
    ],
)
def test_quotes_mean_nothing_in_tsv(write, name, text):
    expected = [Labelled('"He" wins, again Over "and out', "Sports"), Labelled("A chip", "Sci/Tech")]
    assert read_labelled(write(name, text), classes=CLASSES) == expected


def test_numbers_are_labels_of_ag_news_only(write):
    path = write("a.csv", "label,text\n1,a\n")
    assert read_labelled(path, classes=list(CLASSES)) == [("a", "World")]
    for classes in (sorted(CLASSES), CLASSES[:2], ("ham", "spam")):
        with pytest.raises(UserError, match="row 2: the label '1' is unknown"):
            read_labelled(path, classes=classes)


def test_a_header_without_known_names_is_told(write):
    rows = [f"{'spam' if i % 2 else 'ham'},text {i}" for i in range(12)]
    with pytest.raises(UserError, match=r"a\.csv, row 1 looks like a header; name its label column label"):
        read_labelled(write("a.csv", "\n".join(["kind,body", *rows])))
    assert len(read_labelled(write("b.csv", "\n".join(rows)))) == 12
    assert len(read_labelled(write("c.csv", "\n".join(["news,once", *rows[:4]])))) == 5, "too few rows to tell"


def test_long_texts(write):
    text = "b" * 140_000
    assert read_labelled(write("a.csv", f'spam,a\nham,"{text}"\n')) == [("a", "spam"), (text, "ham")]


def test_without_known_classes_labels_stay_as_they_are(write):
    path = write("a.csv", "label,text\n2,a\nSport,b\n")
    assert read_labelled(path) == [("a", "2"), ("b", "Sport")]


def test_a_name_comes_before_a_number(write):
    path = write("a.csv", "label,text\n2,a\n1,b\n")
    assert [label for _, label in read_labelled(path, classes=("3", "2", "1"))] == ["2", "1"]


cells = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@given(rows=st.lists(st.tuples(st.sampled_from(CLASSES), cells, cells), min_size=1, max_size=6))
def test_what_python_writes_is_read_back(tmp_path_factory, rows):
    rows = [(label, f"a{title}", text) for label, title, text in rows]
    path = tmp_path_factory.mktemp("labelled") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(rows)
    # A carriage return before a newline is dropped, as in every text file that is read here.
    expected = [Labelled(join_columns(text.replace("\r\n", "\n") for text in texts), label) for label, *texts in rows]
    assert read_labelled(path, classes=CLASSES) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,a,b\n2,c,d\nSport,e,f\n", "a.csv, row 3: the label 'Sport' is unknown; known here: World, "),
        ("a.csv", "1,a\n0,b\n", "row 2: the label '0' is unknown"),
        ("a.csv", "1,a\n5,b\n", "row 2: the label '5' is unknown"),
        ("a.csv", "1,a\n" + "9" * 5_000 + ",b\n", "row 2: the label '999"),
        ("a.csv", "label,text\n1,a\n,b\n", "row 3: the label is empty"),
        ("a.csv", "1,a,b\n2,c\n", "row 2: 2 columns, but the first row has 3; add what is missing"),
        ("a.csv", "label,text\n1,a,b\n", "row 2: 3 columns, but the first row has 2; .* quote fields"),
        ("a.csv", "1,a\n\n2, \n", "row 3: the text is empty"),
        ("a.csv", 'label,text\n1,"a\nb\nc"\n7,d\n', r"a.csv, row 3 \(line 5\): the label '7' is unknown"),
        ("a.csv", '1,a\n2,"b\n3,c\n', r"row 2: broken quoting \(.*end of data\); close the quotes"),
        ("a.csv", '1,a\n2,"b" c\n', "row 2: broken quoting .* double those inside"),
        ("a.csv", "1,a\r2,b\r", r"row 1: a carriage return alone ends a line; save the file with line ends of"),
        ("a.tsv", "1\ta\n2\tb\r3\tc\r", r"row 2: a carriage return alone"),
        ("a.csv", '1,a\n"Sp\nort",b\n', r"row 2: the label 'Sp\\nort' has control characters"),
        ("a.jsonl", '{"text": "a", "label": "a\\u2028b"}\n', r"row 1: the label 'a\\u2028b' has control characters"),
        ("a.csv", "1\n", "row 1: only one column; a row needs a label and a text"),
        ("a.csv", "label,body\n1,a\n", "row 1: no column is named text, review, sentence, title, headline or"),
        ("a.csv", "", "a.csv has no rows"),
        ("a.csv", "label,text\n", "a.csv has no rows"),
        ("a.jsonl", "\n", "a.jsonl has no rows"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "a"\n', r"row 3: broken JSON \(.* at column 13\)"),
        ("a.jsonl", '{"text": "a", "label": ' + "9" * 5_000 + "}\n", r"row 1: broken JSON \(Exceeds the limit"),
        ("a.jsonl", "[" * 100_000, "row 1: broken JSON"),
        ("a.jsonl", '["a", 1]\n', "row 1: not a JSON object"),
        ("a.jsonl", '{"label": 1}\n', 'row 1: "text" is missing'),
        ("a.jsonl", '{"text": "a"}\n', 'row 1: "label" is missing'),
        ("a.jsonl", '{"text": 5, "label": 1}\n', 'row 1: "text" is 5, but must be a string'),
        ("a.jsonl", '{"text": "a", "label": true}\n', 'row 1: "label" is true, but'),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n', 'row 1: "label" is 1.5, but must be a string or a whole number'),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', "row 1: half a surrogate pair"),
        ("a.txt", "1,a\n", "a.txt is of no known form; name a file that ends in .csv, .tsv or .jsonl"),
        ("a.gz", "1,a\n", "a.gz is of no known form"),
    ],
)  # fmt: skip
def test_mistakes_are_told(write, name, text, message):
    path = write(name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_labelled(path, classes=CLASSES)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv cannot be read"):
        read_labelled(tmp_path / "no.csv")


def test_extra_texts_with_a_kind(write):
    path = write("a.csv.gz", '"1","joined","Title, text"\n"Sports","description","""Text"""\n')
    assert read_extra(path, CLASSES) == [("Title, text", "World"), ('"Text"', "Sports")]
    with pytest.raises(UserError, match="row 1: the label '1' is unknown; known here: World"):
        read_extra(path, ["World"])


def test_extra_texts_in_the_usual_forms(write):
    rows = [(1, "joined", "x"), (2, "Title", "y")]
    plain = write("a.csv", "".join(f"{label},{title},{text}\n" for label, title, text in rows))
    assert read_extra(plain, CLASSES) == [("joined x", "World"), ("Title y", "Sports")]
    objects = write("b.jsonl", json.dumps({"text": "z", "label": "World"}))
    assert read_extra(objects, CLASSES) == [("z", "World")]
    with pytest.raises(UserError, match="has no rows"):
        read_extra(write("c.csv", ""), CLASSES)


def test_real_rows(data_dir):
    folder = data_dir / "ag_news"
    train = read_labelled(folder / "train.csv.gz", classes=CLASSES)
    assert len(train) == 51_240
    assert Counter(label for _, label in train) == dict(zip(CLASSES, (12_743, 12_719, 12_877, 12_901), strict=True))
    test = read_labelled(folder / "test.csv", classes=CLASSES)
    assert len(test) == 3_800
    assert test[0].text.startswith("Fears for T N pension after talks Unions representing workers")
    assert test[0].label == "Business"
    extra = read_extra(folder / "train_extra.csv.gz", CLASSES)
    assert len(extra) == 19_194
    assert not any(text.startswith(f"{KINDS[0]} ") for text, _ in extra)
