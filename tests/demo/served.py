"""The command `transformer-jax demo`, running on tiny models of each task."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile

from tests.tasks.toys import write_bundle, write_classifier, write_couplet_writer

OTHER_PROXY = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
"""A proxy that is not there, so nothing must go through it."""


def write_models(folder):
    """Runs of two translators, a classifier and a couplet model; returns their folders."""
    write_bundle(folder / "toy" / "model", max_source_length=20)
    write_bundle(folder / "other" / "model", seed=1)
    write_classifier(folder / "classes" / "model")
    write_couplet_writer(folder / "couplets" / "model")
    return [folder / name for name in ("toy", "other", "classes", "couplets")]


@contextlib.contextmanager
def serving(folders):
    """The address of a page that the command serves; in the end it is stopped by SIGTERM."""
    command = [sys.executable, "-m", "transformer_jax", "demo", "--port", "0"]
    for folder in folders:
        command += ["--model", str(folder)]
    # The tests' own filter of warnings is not for Gradio.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"} | OTHER_PROXY
    # Errors go to a file: a pipe that nobody reads would fill up.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )

        def told():
            errors.seek(0)
            return errors.read()

        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+)/\n", line)
            if found is None:
                process.kill()
                process.wait()
                raise AssertionError(line + told())
            yield found[1]
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=120)
            assert (process.returncode, out) == (143, ""), told()
            assert told().endswith("transformer-jax: stopped by SIGTERM.\n")  # after what Gradio says of bad requests
        finally:
            process.kill()
            process.communicate()
