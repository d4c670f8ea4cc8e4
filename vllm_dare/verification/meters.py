"""What relaxing did, for one request or for an engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass
class Meters:
    """Counts of requests with a relaxed rule.

    Attributes:
        exact: draft tokens that vLLM's own rule accepted.
        relaxed: draft tokens that it would have rejected and the relaxed rule kept.
        given_up: nats of log-probability given up by relaxing: the sum over relaxed tokens x of
            log p(m) - log p(x), m being the target's most probable token there. 0 for a sampled request's
            token that is itself the most probable.
        budget_stops: steps in which a draft token was not kept because the budget was spent.
    """

    exact: int = 0
    relaxed: int = 0
    given_up: float = 0.0
    budget_stops: int = 0

    def add(self, report: Sequence[float]) -> None:
        """Add a row of `vllm_dare.verification.policy.Verdict.report`."""
        exact, relaxed, given_up, stopped = report
        self.exact += int(exact)
        self.relaxed += int(relaxed)
        self.given_up += given_up
        self.budget_stops += int(stopped)

    def add_meters(self, other: Mapping[str, float]) -> None:
        """Add what `as_dict` of other meters says."""
        self.add([other["exact"], other["relaxed"], other["given_up"], other["budget_stops"]])

    def as_dict(self) -> dict[str, float]:
        """For reports; with the mean log-probability given up per relaxed token, 0 without one."""
        return {**vars(self), "given_up_per_token": self.given_up / self.relaxed if self.relaxed else 0.0}
