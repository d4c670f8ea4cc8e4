"""What workers tell the driver."""

from vllm_dare.generation.meter import Counters, Figures
from vllm_dare.scale.worker import Report
from vllm_dare.verification.meters import Meters


def test_a_report_survives_its_way() -> None:
    figures = Figures(3, 1, 20, counters=Counters(30, 10, 15, 12), relaxed=Meters(5, 2, 0.5, 1))
    for report in (Report(figures, 12.5), Report(), Report(fault="It broke.")):
        assert Report.decode(report.encode()) == report


def test_figures_add_up() -> None:
    rows = [
        {"finish_reason": "stop", "completion_tokens": 4},
        {"finish_reason": "error", "completion_tokens": 0},
        {
            "finish_reason": "stop",
            "completion_tokens": 6,
            "verification": Meters(3, 1, 0.25, 0).as_dict(),
        },
    ]
    one = Figures.of_rows(rows[:2]) + Figures(seconds=2.0, counters=Counters(4, 2, 3, 2))
    total = one + Figures.of_rows(rows[2:]) + Figures(seconds=1.0, counters=Counters(6, 3, 4, 3))
    assert total == Figures(3, 1, 10, 2.0, Counters(10, 5, 7, 5), Meters(3, 1, 0.25, 0))
