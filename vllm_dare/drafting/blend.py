"""How far each context is trusted: the numbers that `chain` blends continuations with.

A context is given a share, its trust, of the probability that longer contexts left over (deleted
interpolation: Jelinek and Mercer, "Interpolated estimation of Markov source parameters from sparse data",
1980). Trust is looked up in a table by the kind of source, the context's length, the number of places where
it occurs and the variety of what follows; `fit` estimates it from a pool's own text.
"""

import base64
import binascii
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Kinds of sources, in the order in which they are asked at each length.
OWN, GROUP, GLOBAL = range(3)
NUM_KINDS = 3
# Context lengths 1 to 8 have a row each; longer ones share.
NUM_LENGTHS = 12
NUM_PLACES = 10
NUM_VARIETIES = 6
NUM_TRUST = NUM_KINDS * NUM_LENGTHS * NUM_PLACES * NUM_VARIETIES
# The survival curve has this many points, evenly spaced over [0, 1].
CURVE_POINTS = 33

# Entries of the table, as typical numbers of places and of different continuations.
_TYPICAL_PLACES = np.array([1, 2, 3.5, 6.5, 12.5, 24.5, 48.5, 128, 512, 2048])
_TYPICAL_VARIETY = np.array([1, 2, 3.5, 6.5, 12.5, 24])
# Points of a curve: scores just above one half are better than they look, since the look-up ends as soon as
# the leading token cannot be overtaken.
_TYPICAL_SCORES = np.array([0.0, 0.25, 0.47, 0.5, 0.75, 1.0])
_TYPICAL_CURVE = np.array([0.01, 0.25, 0.46, 0.68, 0.9, 1.0])


@dataclass(frozen=True, eq=False)
class Blend:
    """The fitted numbers.

    Attributes:
        trust: float64[NUM_TRUST], in (0, 1), see `trust_index` in `chain`.
        curve: float64[CURVE_POINTS], rising: the probability that a draft token is right whose blended score
            is i / (CURVE_POINTS - 1), given that those before it are.
    """

    trust: npt.NDArray[np.float64]
    curve: npt.NDArray[np.float64]

    @classmethod
    def default(cls) -> "Blend":
        """What is used where nothing has been fitted: formulas near what fits agree on.

        A context of the pool with N places and T continuations is trusted N / (N + 3 T - 1). What follows
        once in the own text says little, what follows three times is nearly sure: 0.7 N**3 in place of N.
        """
        pool = _TYPICAL_PLACES
        places = np.stack([0.7 * pool**3, pool, pool])[:, None, :, None]
        trust = places / (places + 3 * _TYPICAL_VARIETY - 1)
        table = np.broadcast_to(trust, (NUM_KINDS, NUM_LENGTHS, NUM_PLACES, NUM_VARIETIES))
        curve = np.interp(np.linspace(0, 1, CURVE_POINTS), _TYPICAL_SCORES, _TYPICAL_CURVE)
        return cls(np.clip(table.reshape(-1), 1e-4, 1 - 1e-4), curve)

    @property
    def asks_groups(self) -> bool:
        """Whether the text of a request's group drafts apart from the global text, which has it too."""
        return bool(self._by_kind(self.trust)[GROUP].any())

    def without_groups(self) -> "Blend":
        """The same, but groups are given no trust: they are not asked where there is global text."""
        trust = self.trust.copy()
        self._by_kind(trust)[GROUP] = 0.0
        return Blend(trust, self.curve)

    @staticmethod
    def _by_kind(trust: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return trust.reshape(NUM_KINDS, -1)

    def numbers(self) -> npt.NDArray[np.float64]:
        """float64[any], trust and curve as the kernels take them."""
        return np.concatenate([self.trust, self.curve])

    def encode(self) -> str:
        """The numbers as text, for a manifest: base64 of little-endian float32."""
        return base64.b64encode(self.numbers().astype("<f4").tobytes()).decode()

    @classmethod
    def decode(cls, text: str) -> "Blend":
        """What `encode` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            numbers = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
        except binascii.Error as error:
            raise ValueError(str(error)) from None
        if len(numbers) != NUM_TRUST + CURVE_POINTS or not np.all((numbers >= 0) & (numbers <= 1)):
            raise ValueError("not the numbers of a blend")
        return cls(numbers[:NUM_TRUST], numbers[NUM_TRUST:])
