"""Column lists of a layer: which keys its tiles of queries attend to."""

from __future__ import annotations

from sparvar import kernels
from sparvar.errors import SessionError, message


class Columns(kernels.Columns):
    """Column indices of one layer: indices int32 [B, H, G, K] and counts int32 [B, H, G]."""

    __slots__ = ()

    def rows(self, batch: int) -> Columns:
        """The indices for ``batch`` rows: all, or the first half when the model dropped its CFG rows.

        Raises:
            SessionError: the batch is neither the one at the decision scale nor half of it.
        """
        have = self.indices.shape[0]
        if have in (1, batch):
            return self
        if have == 2 * batch:
            return Columns(self.indices[:batch], self.counts[:batch])
        raise SessionError(
            message(
                "batch",
                f"stay {have} after the decision scale, or be halved to {have // 2}",
                str(batch),
                "start a new generation for another batch",
            )
        )
