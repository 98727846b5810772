import pytest

from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.sources import leave_out_unfit, read_blocklist, read_couplets, without_spaces


def test_white_space_of_any_kind_is_left_out():
    assert without_spaces(" 花 开\u3000花\t落 ， \u00a0春\r") == "花开花落，春"


def test_files(tmp_path):
    (tmp_path / "in.txt").write_text("花 开 \n\n春 ， 风\n", encoding="utf-8")
    (tmp_path / "out.txt").write_text("月 落 \n秋\n夜 ， 雨\n", encoding="utf-8")
    assert read_couplets(tmp_path / "in.txt", tmp_path / "out.txt") == [
        ("花开", "月落"),
        ("", "秋"),
        ("春，风", "夜，雨"),
    ]
    (tmp_path / "out.txt").write_text("月 落\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"in\.txt has 3 lines, but .*out\.txt has 1"):
        read_couplets(tmp_path / "in.txt", tmp_path / "out.txt")


def test_files_without_lines(tmp_path):
    for name in ("in.txt", "out.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"in\.txt and .*out\.txt have no lines; name files with couplets"):
        read_couplets(tmp_path / "in.txt", tmp_path / "out.txt")


def test_blocklist(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# a comment\n春节\n\n 发 财 # another\n", encoding="utf-8")
    assert read_blocklist(path) == ["春节", "发财"]
    with pytest.raises(UserError, match=r"nowhere\.txt cannot be read"):
        read_blocklist(tmp_path / "nowhere.txt")


def test_unfit_couplets_are_counted_once():
    couplets = [
        ("花开", "月落"),
        ("", "秋"),
        ("春", ""),
        ("春风", "秋"),
        ("过春节", "来秋天"),
        ("迎春天", "春节去"),
        ("春天节", "秋地日"),
        ("a.c", "xyz"),
        ("abc", "xyz"),
    ]
    fit = leave_out_unfit(couplets, ["春节", "a.c"])
    assert fit.couplets == [("花开", "月落"), ("春天节", "秋地日"), ("abc", "xyz")]
    assert (fit.blank, fit.unequal, fit.blocked) == (2, 1, 3)
    assert len(leave_out_unfit(couplets).couplets) == 6
