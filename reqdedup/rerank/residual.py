"""What the span of the last picks does not explain of every candidate.

    C    [w, N]   inner products of the window's picks with all candidates, a ring: the newest overwrites the oldest
    P    [w, w]   inverse of the picks' own inner products, G = C[:, picks]
    residual^2 = |x|^2 - c' P c       for each candidate's column c of C

A pick that enters or leaves changes the residuals by one square, O(N w), and P by a rank of one. Rounding grows with
each change and with the condition of G, so both are computed anew once per window, and at every pick while some pick of
the window is explained by the others (repeated vectors, more picks than dimensions): then from the eigenvalues of G,
those below SMALLEST_SHARE of the largest being none.
"""

from __future__ import annotations

import numpy as np

SMALLEST_SHARE = 1e-10
"""Of a squared length, below which a residual is taken for rounding."""

_DEPENDENT_SHARE = 1e-6
"""Of a pick's squared length, below which it is taken for one that the others explain, and nothing is updated."""


class WindowResidual:
    """Squared residuals of N candidates against the span of the last `window` picks.

    vectors: [N, d] float64, finite.  window: picks that count.
    """

    def __init__(self, vectors_ND: np.ndarray, window: int) -> None:
        self.squared_length_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
        self.squared_N = self.squared_length_N.copy()
        self._vectors_ND, self._floor_N = vectors_ND, SMALLEST_SHARE * self.squared_length_N
        self._products_WN = np.zeros((window, len(vectors_ND)))
        self._picks_W = np.zeros(window, np.int64)
        self._inverse_WW = np.zeros((window, window))
        self._coefficients, self._changes = np.zeros((2, window)), np.zeros((2, len(vectors_ND)))
        self._num_picks = 0
        self._is_exact = True  # the inverse is that of the picks in the window

    @property
    def products(self) -> np.ndarray:
        """Inner products of the window's picks with all candidates, [w, N], in no particular order of picks."""
        return self._products_WN[: self._num_picks]

    @property
    def picks(self) -> np.ndarray:
        """The window's picks, in the order of `products`."""
        return self._picks_W[: self._num_picks]

    def pick(self, candidate: int) -> None:
        """Take a candidate into the window; the oldest pick leaves a full one."""
        slot = self._num_picks % len(self._picks_W)
        product_N = self._vectors_ND @ self._vectors_ND[candidate]
        renews = slot == 0 or not self._is_exact or not self._replace(slot, candidate, product_N)
        self._picks_W[slot], self._products_WN[slot] = candidate, product_N
        self._num_picks += 1
        if renews:
            self._renew()
        self.squared_N[self.squared_N <= self._floor_N] = 0.0

    def _replace(self, slot: int, candidate: int, product_N: np.ndarray) -> bool:
        """Residuals and inverse with the candidate in place of the oldest pick, if there is one in this slot.

        False if the candidate is not new to the span, so that neither is to be trusted.
        """
        inverse_WW, products_WN = self._inverse_WW, self._products_WN
        leaves = self._num_picks >= len(self._picks_W)
        if leaves:
            column_W = self._coefficients[0]
            np.multiply(inverse_WW[slot], inverse_WW[slot, slot] ** -0.5, out=column_W)
            inverse_WW -= column_W[:, None] * column_W
            inverse_WW[slot] = inverse_WW[:, slot] = 0.0
        weight_W = self._coefficients[1]
        np.dot(inverse_WW, products_WN[:, candidate], out=weight_W)
        gained_N, lost_N = np.dot(self._coefficients, products_WN, out=self._changes)
        residual = product_N[candidate] - lost_N[candidate]
        if not residual > _DEPENDENT_SHARE * product_N[candidate]:
            return False
        if leaves:
            gained_N *= gained_N
            self.squared_N += gained_N
        lost_N -= product_N
        lost_N *= residual**-0.5
        lost_N *= lost_N
        self.squared_N -= lost_N
        weight_W[slot] = -1.0
        inverse_WW += weight_W[:, None] * (weight_W / residual)
        return True

    def _renew(self) -> None:
        """Residuals and inverse from the picks of the window alone."""
        size = min(self._num_picks, len(self._picks_W))
        value_W, vector_WW = np.linalg.eigh(self.products[:, self.picks])
        spans = value_W > SMALLEST_SHARE * max(float(value_W[-1]), 0.0)
        self._is_exact = bool(spans.all())
        axes_KW = (vector_WW[:, spans] / np.sqrt(value_W[spans])).T
        axes_KN = axes_KW @ self.products
        self.squared_N = self.squared_length_N - np.einsum("kn,kn->n", axes_KN, axes_KN)
        self._inverse_WW[:size, :size] = axes_KW.T @ axes_KW
