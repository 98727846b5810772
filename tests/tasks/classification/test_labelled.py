import csv
import gzip
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.system import UserError
from transformer_jax.tasks.classification.labelled import (
    AG_NEWS_COLUMNS,
    AG_NEWS_EXTRA_COLUMNS,
    Columns,
    Labelled,
    join_columns,
    read_labelled,
)

CLASSES = ("World", "Sports", "Business", "Sci/Tech")


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        content = text.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


NUMBERS = Columns(("2",), "1")
"""Of files without a header: the label, then the text."""


@pytest.mark.parametrize(
    ("name", "columns", "text"),
    [
        ("plain.csv", AG_NEWS_COLUMNS, '"2","He ""wins"", again","Over, and\nout"\n"4"," A chip ",""\n'),
        ("header.csv", Columns(("title", "description"), "class"),
         'id,Class,Title,Description\n7,2,"He ""wins"", again","Over, and\nout"\n\n8,4,A chip,\n'),
        ("headline.csv.gz", Columns(("headline",)),
         '\ufeffheadline,label\n"He ""wins"", again Over, and\nout",Sports\nA chip,Sci/Tech\n\n'),
        ("index.CSV.GZ", Columns(("review",), "Class Index"),
         'Class Index,Review\n2,"He ""wins"", again Over, and\nout"\nSci/Tech,A chip\n'),
        ("objects.jsonl", Columns(), '{"text": "He \\"wins\\", again Over, and\\nout", "label": 2}\n\n'
                                     '{"label": "4", "text": "A chip"}'),
        ("names.jsonl.gz", Columns(), '{"label": "Sports", "text": "He \\"wins\\", again Over, and\\nout", "x": 1}\n'
                                      '{"label": " Sci/Tech ", "text": " A chip "}\n'),
        ("fields.jsonl", Columns(("a", "b"), "c"), '{"c": 2, "a": "He \\"wins\\", again", "b": "Over, and\\nout"}\n'
                                                   '{"c": 4, "a": "A chip", "b": ""}\n'),
        ("numbers.jsonl", AG_NEWS_COLUMNS, '{"text": "He \\"wins\\", again Over, and\\nout", "label": 2}\n'
                                           '{"label": "4", "text": "A chip"}'),
    ],
)  # fmt: skip
def test_every_form(write, name, columns, text):
    expected = [Labelled('He "wins", again Over, and\nout', "Sports"), Labelled("A chip", "Sci/Tech")]
    assert read_labelled(write(name, text), classes=CLASSES, columns=columns) == expected


@pytest.mark.parametrize(
    ("name", "columns", "text"),
    [
        ("plain.tsv", AG_NEWS_COLUMNS, '2\t"He" wins, again\tOver "and out\r\n4\tA chip\t\r\n'),
        ("Text.TSV", Columns(label_column="category"),
         'text\ttitle\tcategory\n"He" wins, again Over "and out\tx\tSports\nA chip\ty\t4\n'),
        ("sentence.tsv", Columns(("sentence",), "sentiment"),
         'sentence\tsentiment\n"He" wins, again Over "and out\tSports\nA chip\tSci/Tech\n'),
    ],
)  # fmt: skip
def test_quotes_mean_nothing_in_tsv(write, name, columns, text):
    expected = [Labelled('"He" wins, again Over "and out', "Sports"), Labelled("A chip", "Sci/Tech")]
    assert read_labelled(write(name, text), classes=CLASSES, columns=columns) == expected


def test_numbers_are_labels_of_ag_news_only(write):
    path = write("a.csv", "label,text\n1,a\n")
    assert read_labelled(path, classes=list(CLASSES)) == [("a", "World")]
    for classes in (sorted(CLASSES), CLASSES[:2], ("ham", "spam")):
        with pytest.raises(UserError, match="row 2: the label '1' is unknown"):
            read_labelled(path, classes=classes)


def test_columns_that_are_not_there_are_told_with_those_that_are(write):
    rows = "".join(f"{'spam' if i % 2 else 'ham'},text {i}\n" for i in range(12))
    named, bare = write("a.csv", f"kind,body\n{rows}"), write("b.csv", rows)
    for columns, message in (
        (
            Columns(),
            r"row 1: no column is named 'text', only 'kind', 'body'; set config\.data\.text_columns, or",
        ),
        (Columns(("body",)), r"row 1: no column is named 'label', only 'kind', 'body'; set config\.data\.label_column"),
        (Columns(("2", "body"), "kind"), r"row 1: no column is named '2', only 'kind', 'body'"),
        (Columns(("2", "3"), "1"), r"row 1: there is no column 3, only 'kind', 'body'; set config\.data\.text_columns"),
        (Columns(("0",), "1"), r"row 1: there is no column 0, only"),
    ):
        with pytest.raises(UserError, match=rf"a\.csv, {message}"):
            read_labelled(named, columns=columns)
    with pytest.raises(
        UserError, match=r"no column is named 'text', only 'ham', 'text 0'; .*without a header: numbers"
    ):
        read_labelled(bare)
    assert read_labelled(named, columns=Columns(("body",), "kind")) == read_labelled(bare, columns=NUMBERS)
    assert len(read_labelled(bare, columns=NUMBERS)) == 12


def test_long_texts(write):
    text = "b" * 140_000
    assert read_labelled(write("a.csv", f'spam,a\nham,"{text}"\n'), columns=NUMBERS) == [("a", "spam"), (text, "ham")]


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
    assert read_labelled(path, classes=CLASSES, columns=AG_NEWS_COLUMNS) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,a,b\n2,c,d\nSport,e,f\n", "a.csv, row 3: the label 'Sport' is unknown; known here: World, "),
        ("a.csv", "1,a\n0,b\n", "row 2: the label '0' is unknown"),
        ("a.csv", "1,a\n5,b\n", "row 2: the label '5' is unknown"),
        ("a.csv", "1,a\n" + "9" * 5_000 + ",b\n", "row 2: the label '999"),
        ("a.csv", "label,text\n1,a\n,b\n", "row 3: the label is empty"),
        ("a.csv", "1,a,b\n2,c\n", "row 2: 2 columns, but the first row has 3; add the missing ones"),
        ("a.csv", "label,text\n1,a,b\n", "row 2: 3 columns, but the first row has 2; .* quote fields"),
        ("a.csv", "1,a\n\n2, \n", "row 3: the text is empty"),
        ("a.csv", 'label,text\n1,"a\nb\nc"\n7,d\n', r"a.csv, row 3 \(line 5\): the label '7' is unknown"),
        ("a.csv", '1,a\n2,"b\n3,c\n', r"row 2: broken quoting \(.*end of data\); close the quotes"),
        ("a.csv", '1,a\n2,"b" c\n', "row 2: broken quoting .* double those inside"),
        ("a.csv", "1,a\r2,b\r", r"row 1: a carriage return alone ends a line; save the file with line ends of"),
        ("a.tsv", "1\ta\n2\tb\r3\tc\r", r"row 2: a carriage return alone"),
        ("a.csv", '1,a\n"Sp\nort",b\n', r"row 2: the label 'Sp\\nort' has control characters"),
        ("a.jsonl", '{"text": "a", "label": "a\\u2028b"}\n', r"row 1: the label 'a\\u2028b' has control characters"),
        ("a.csv", "1\n", "row 1: there is no column 2, only '1'; set config.data.text_columns"),
        ("a.csv", "label,body\n1,a\n", "row 1: no column is named 'text', only 'label', 'body'; set config"),
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
        ("a.txt", "1,a\n", "a.txt has no known suffix; name a file that ends in .csv, .tsv or .jsonl"),
        ("a.gz", "1,a\n", "a.gz has no known suffix"),
    ],
)  # fmt: skip
def test_mistakes_are_told(write, name, text, message):
    path = write(name, text)
    with pytest.raises(UserError, match=message) as caught:
        read_labelled(path, classes=CLASSES, columns=NUMBERS if text[:1] in '1"2' else Columns())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no\.csv cannot be read"):
        read_labelled(tmp_path / "no.csv")


def test_extra_texts_of_ag_news(write):
    path = write("a.csv.gz", '"1","joined","Title, text"\n"Sports","description","""Text"""\n')
    extra = read_labelled(path, classes=CLASSES, columns=AG_NEWS_EXTRA_COLUMNS)
    assert extra == [("Title, text", "World"), ('"Text"', "Sports")]
    with pytest.raises(UserError, match="row 1: the label '1' is unknown; known here: World"):
        read_labelled(path, classes=["World"], columns=AG_NEWS_EXTRA_COLUMNS)
    objects = write("b.jsonl", json.dumps({"text": "z", "label": "World"}))
    assert read_labelled(objects, classes=CLASSES, columns=AG_NEWS_EXTRA_COLUMNS) == [("z", "World")]
    with pytest.raises(UserError, match="has no rows"):
        read_labelled(write("c.csv", ""), classes=CLASSES, columns=AG_NEWS_EXTRA_COLUMNS)


def test_real_rows(data_dir):
    folder = data_dir / "ag_news"
    train = read_labelled(folder / "train.csv.gz", classes=CLASSES, columns=AG_NEWS_COLUMNS)
    assert len(train) == 51_240
    assert Counter(label for _, label in train) == dict(zip(CLASSES, (12_743, 12_719, 12_877, 12_901), strict=True))
    test = read_labelled(folder / "test.csv", classes=CLASSES, columns=AG_NEWS_COLUMNS)
    assert len(test) == 3_800
    assert test[0].text.startswith("Fears for T N pension after talks Unions representing workers")
    assert test[0].label == "Business"
    extra = read_labelled(folder / "train_extra.csv.gz", classes=CLASSES, columns=AG_NEWS_EXTRA_COLUMNS)
    assert len(extra) == 19_194
    assert not any(text.startswith(("joined ", "description ")) for text, _ in extra)


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected"),
    [
        ("a.csv", "text,Body,label,\nx,y,z,\n", Columns(), "text from text, label from label; not used: Body, "),
        ("a.csv", "Title,Body,label\nx,y,z\n", Columns(("title", "body")), "text from title, body, label from label"),
        ("a.tsv", "x\ty\tz\n", Columns(("2",), "1"), "text from column 2, label from column 1; not used: 3"),
        (
            "a.jsonl",
            '{"id": 1, "text": "x", "label": 2}\n',
            Columns(),
            "text from text, label from label; not used: id",
        ),
    ],
)
def test_the_columns_that_are_used_are_told(tmp_path, name, content, columns, expected):
    told = []
    (tmp_path / name).write_text(content)
    read_labelled(tmp_path / name, columns=columns, report=told.append)
    assert told == [f"{tmp_path / name}: {expected}"]
