"""How far each context is trusted: the numbers that `chain` blends continuations with.

A context that occurs `places` times with `kinds` different continuations is given a share, its trust, of the
probability that longer contexts left over (deleted interpolation: Jelinek and Mercer, "Interpolated estimation of
Markov source parameters from sparse data", 1980). Trust is looked up in a table by kind of source, length,
places and kinds. Without a fit the table holds Witten-Bell's formula (Bell, Cleary, Witten, "Text
Compression", 1990) with a discount; `fit` estimates it from a pool's own text.
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

_TYPICAL_PLACES = np.array([1, 2, 3.5, 6.5, 12.5, 24.5, 48.5, 128, 512, 2048])
_TYPICAL_VARIETY = np.array([1, 2, 3.5, 6.5, 12.5, 24])
# How strongly variety of continuations takes trust from a context (1 is Witten-Bell's own), and how many
# places of the pool one place in the own text counts for.
_DISCOUNT = 5.0
_OWN_WEIGHT = 32.0


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
        """What is used where nothing has been fitted."""
        places = _TYPICAL_PLACES[:, None] * np.array([_OWN_WEIGHT, 1.0, 1.0])[:, None, None]
        trust = places / (places + _DISCOUNT * _TYPICAL_VARIETY)
        table = np.broadcast_to(trust[:, None], (NUM_KINDS, NUM_LENGTHS, NUM_PLACES, NUM_VARIETIES))
        return cls(np.ascontiguousarray(table).reshape(-1), np.linspace(0.0, 1.0, CURVE_POINTS))

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
