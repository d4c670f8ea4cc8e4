"""What a run shows on a terminal."""

import io
import re

from rich.console import Console

from vllm_dare.generation.meter import Meter
from vllm_dare.generation.progress import run_progress


class FakeLLM:
    def get_metrics(self) -> list[object]:
        return []


def test_the_last_count_on_a_narrow_terminal_is_that_of_the_rows() -> None:
    file = io.StringIO()
    meter = Meter(FakeLLM())
    with run_progress(Console(file=file, force_terminal=True, width=80), 200, 3) as progress:
        for _ in range(197):
            meter.count({"finish_reason": "stop", "completion_tokens": 7})
            progress.advance(meter)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert re.findall(r"\d+/200", text)[-1] == "200/200"
