"""What the tests of the commands expect of them, and the files that they write for them."""


def refused(result, *expected):
    """Exit status 2, nothing on stdout, and one sentence on stderr with all these texts."""
    status, out, err = result
    lines = err.splitlines()
    assert (status, out, len(lines)) == (2, "", 1), result
    assert lines[0].startswith("transformer-jax: error: ")
    assert [text for text in expected if text not in lines[0]] == []


def as_lines(texts):
    return "".join(f"{text}\n" for text in texts)


def config_file(tmp_path, body):
    path = tmp_path / "experiment.py"
    path.write_text(f"from transformer_jax.config import default_config\n\n{body}", encoding="utf-8")
    return path


def data_config(tmp_path, **data):
    """A configuration with these fields of `config.data`."""
    fields = "".join(f"    config.data.{name} = {value!r}\n" for name, value in data.items())
    return config_file(tmp_path, f"\ndef get_config():\n    config = default_config()\n{fields}    return config\n")
